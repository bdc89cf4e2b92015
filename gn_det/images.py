"""Open image files of any origin: of known formats only, and with errors that name the file.

Files are read as by detectron2, with three differences: only :data:`FORMATS` are opened, EXIF data that
are damaged count as upright, and a rotated TIFF is rotated once.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.data.detection_utils import _apply_exif_orientation, convert_PIL_to_numpy
from PIL import Image

from .errors import GNDetError

# Pillow supports more formats, but starts other programs for some of them (Ghostscript for EPS).
# Not every build of Pillow has AVIF.
Image.init()
FORMATS = [name for name in "AVIF BMP DIB GIF JPEG JPEG2000 PNG PPM TIFF WEBP".split() if name in Image.OPEN]

_ORIENTATION = 0x0112  # EXIF tag
_PREFIX = 16  # bytes by which Pillow recognizes a format
_PNG_TEXT = {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}  # chunks that may contain EXIF data


@dataclass(frozen=True)
class Header:
    """What the header of an image file says.

    Attributes:
        size: width and height in pixels, after the EXIF orientation is applied.
        mode: as Pillow names it, for example "RGB", "L" or "I;16".
        format: one of :data:`FORMATS`, or "MPO", a JPEG with several pictures.
        orientation: of EXIF, from 1 (upright) to 8.
    """

    size: tuple[int, int]
    mode: str
    format: str
    orientation: int


@contextlib.contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """Open an image file for a ``with`` block. The block may only read from the image.

    Raises:
        GNDetError: the file does not exist, is not an image of a known format, is damaged, or has more
            pixels than Pillow's limit; also if this turns out within the block.
    """
    if not os.path.isfile(path):
        raise GNDetError(f"{path} {'is a folder, not an image file' if os.path.isdir(path) else 'does not exist'}.")
    try:
        # Open the file here: given a path, Pillow maps some TIFFs into memory and misreads rotated ones.
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            yield image
    except GNDetError:
        raise
    except Exception as error:  # decoders raise exceptions of any type on damaged files
        raise GNDetError(f"{path} cannot be read as an image: {_reason(path, error)}.") from None


def _reason(path: str | Path, error: Exception) -> str:
    """Describe in a clause why the file cannot be read."""
    if not os.path.getsize(path):
        return "it is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return "its format is not supported, or it is damaged"
    text = getattr(error, "strerror", None) or str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.rstrip(".")


def read_image(path: str | Path, mode: str) -> np.ndarray:
    """Read an image file as detectron2's ``read_image`` does.

    Args:
        mode: a mode of Pillow, or "BGR".

    Returns:
        the pixels, (height, width, channels).

    Raises:
        GNDetError: see :func:`open_image`.
    """
    with open_image(path) as image:
        image.load()  # Pillow applies a TIFF's orientation here; detectron2 alone would apply it twice
        pixels: np.ndarray = convert_PIL_to_numpy(upright(image), mode)
        return pixels


def read_header(path: str | Path) -> Header:
    """Read the header of an image file.

    Pixels are decoded only if the file may be cut, because a JPEG or PNG lacks its end mark, or if EXIF
    data follow the pixels of a PNG.

    Raises:
        GNDetError: see :func:`open_image`; also if a JPEG or PNG is cut.
    """
    with open_image(path) as image:
        if _needs_pixels(path, image.format or ""):
            image.load()
        orientation = _orientation(image)
        size = image.size[::-1] if orientation >= 5 else image.size
        return Header(size, image.mode, image.format or "", orientation)


def check_format(path: str | Path) -> None:
    """Check by its first bytes that a file is of one of the :data:`FORMATS`, in microseconds.

    Raises:
        GNDetError: it is not, or it does not exist.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            prefix = file.read(_PREFIX).ljust(_PREFIX, b"\0")
    except OSError as error:
        raise GNDetError(f"{path} cannot be read as an image: {error.strerror}.") from None
    tests = (Image.OPEN[name][1] for name in FORMATS)
    if not any(test and test(prefix) for test in tests):
        raise GNDetError(f"{path} cannot be read as an image: it is empty, damaged or of an unsupported format.")


def upright(image: Image.Image) -> Image.Image:
    """Return an image, whose pixels must be loaded, with its EXIF orientation applied."""
    return _apply_exif_orientation(image) if _orientation(image) > 1 else image


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation. It is 1, upright, if it is missing, damaged or not among 1 to 8."""
    try:
        # For a PNG, not its own method, which decodes the image.
        exif = Image.Image.getexif(image) if image.format == "PNG" else image.getexif()
        value = exif.get(_ORIENTATION)
        return next((number for number in range(2, 9) if number == value), 1)
    except Exception:  # damaged EXIF data raise exceptions of any type
        return 1


def _needs_pixels(path: str | Path, kind: str) -> bool:
    """Return whether the header of a file is not enough for :func:`read_header`."""
    with open(path, "rb", buffering=0) as file:
        if kind in ("JPEG", "MPO"):
            file.seek(max(0, os.path.getsize(path) - 64))
            return not file.read().rstrip(b"\0\r\n ").endswith(b"\xff\xd9")  # some writers pad, or append data
        if kind != "PNG":
            return False
        file.seek(8)
        chunks = []
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            chunks.append(head[4:])
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
        after = chunks[chunks.index(b"IDAT") :] if b"IDAT" in chunks else []
        return head[4:] != b"IEND" or not _PNG_TEXT.isdisjoint(after)
