"""Images of every kind -> what a model takes: (height, width, 3), BGR, uint8.

Files are read as in training, by detectron2: turned as their EXIF data say, gray and palette spread to three channels,
alpha dropped (not blended), CMYK converted, the first picture of several. 16-bit gray, which it would clip at 255, is scaled
by its whole range. What has no known range (floats, 32-bit integers) is refused.
"""

import glob
import os
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.detection_utils import _apply_exif_orientation, convert_PIL_to_numpy
from PIL import Image

from ..errors import GNDetError

# Of what lies in a folder, what is tried. HEIC is not read, and so is named rather than passed over.
IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .dib .gif .heic .heif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .ppm .tif .tiff .webp".split()
)
# Pillow knows more, and for some starts other programs (for EPS Ghostscript). Not each Pillow has AVIF.
Image.init()
_FORMATS = [name for name in "AVIF BMP DIB GIF JPEG JPEG2000 PNG PPM TIFF WEBP".split() if name in Image.OPEN]


def read_image(path: str | Path) -> np.ndarray:
    """An image file as (height, width, 3), BGR, uint8.

    Raises:
        GNDetError: it is not there, is no image, is cut off or too large, or its pixels have no known range.
    """
    if not os.path.isfile(path):
        raise GNDetError(f"{path} is {'a folder' if os.path.isdir(path) else 'not there'}.")
    try:
        # Not by its path: Pillow would map some TIFFs into memory, and misread those that are turned.
        with open(path, "rb") as file, Image.open(file, formats=_FORMATS) as image:
            return _from_pil(image)
    except GNDetError as error:
        raise GNDetError(f"{path}: {error}") from None
    except Exception as error:  # there is no end to what decoders raise on bytes that are no image
        raise GNDetError(f"{path} cannot be read as an image: {_reason(path, error)}.") from None


def _reason(path: str | Path, error: Exception) -> str:
    if not os.path.getsize(path):
        return "it is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is in none of the formats that are read, or damaged"
    text = getattr(error, "strerror", None) or str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.rstrip(".")


def as_bgr(image: object) -> np.ndarray:
    """A PIL image, or an array (height, width[, 1, 3 or 4]) of uint8 in BGR(A), as (height, width, 3), BGR, uint8.

    Raises:
        GNDetError: it is something else, or has no pixels.
    """
    if isinstance(image, Image.Image):
        try:
            return _from_pil(image)
        except (OSError, ValueError, SyntaxError) as error:  # opened, and read only now
            raise GNDetError(f"The PIL image cannot be used: {error}") from None
    if not isinstance(image, np.ndarray):
        raise GNDetError(
            f"A {type(image).__name__} is no image: pass a path, an array, a PIL image, or a list of these."
        )
    if image.dtype != np.uint8:
        raise GNDetError(f"The array is of type {image.dtype}: pass uint8, from 0 to 255.")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise GNDetError(
            f"The array's shape is {image.shape}: pass (height, width, 3), in BGR, or (height, width) for gray."
        )
    if not image.size:
        raise GNDetError(f"The array's shape is {image.shape}: it has no pixels.")
    return _three_channels(image) if image.ndim == 2 or image.shape[2] == 1 else image[:, :, :3]


def _from_pil(image: Image.Image) -> np.ndarray:
    if 0 in image.size:
        raise GNDetError(f"it has {image.size[0]} x {image.size[1]} pixels.")
    image.load()  # Pillow turns a TIFF then; detectron2 alone would turn it twice
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # PNG's 16 bits before Pillow 11
        return _three_channels((np.asarray(_apply_exif_orientation(image)) >> 8).astype(np.uint8))
    if image.mode in ("F", "I"):
        kind = {"F": "floats", "I": "32-bit integers"}[image.mode]
        raise GNDetError(f"its pixels are {kind}, whose range nobody knows: save it with 8 or 16 bits a channel.")
    return convert_PIL_to_numpy(_apply_exif_orientation(image), "BGR")


def _three_channels(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray.reshape(*gray.shape[:2], 1), 3, axis=2)


def find_files(source: str | Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[str]:
    """The files of a path, of a folder (those with the suffixes, sorted, without its folders) or of a glob pattern.

    Raises:
        GNDetError: there are none, or it is a URL.
    """
    name = os.path.expanduser(source)
    if "://" in name:
        raise GNDetError(f"{name} is a URL, and only files are read: download it first.")
    if os.path.isdir(name):
        paths = [os.path.join(name, file) for file in sorted(os.listdir(name)) if not file.startswith(".")]
        files = [path for path in paths if os.path.isfile(path) and Path(path).suffix.lower() in suffixes]
        if not files:
            below = os.path.join(name, "*", "*")
            raise GNDetError(f"The folder {name} holds no images itself; {below} would name those of its folders.")
        return files
    if os.path.exists(name) or not glob.has_magic(name):
        return [name]
    files = sorted(path for path in glob.glob(name, recursive=True) if os.path.isfile(path))
    if not files:
        raise GNDetError(f"No file matches {name}.")
    return files


def read_all(inputs: object) -> Iterator[tuple[str | int, np.ndarray | GNDetError]]:
    """Each image of one input or of an iterable of them: (path, or position where it has none; the image, or why not)."""
    one = isinstance(inputs, str | os.PathLike | np.ndarray | Image.Image)
    try:
        sources = iter([inputs] if one else inputs)  # type: ignore[call-overload]
    except TypeError:
        sources = iter([inputs])
    for position, source in enumerate(sources):
        if not isinstance(source, str | os.PathLike):
            yield position, _attempt(partial(as_bgr, source))
            continue
        files = _attempt(partial(find_files, os.fspath(source)))
        if isinstance(files, GNDetError):
            yield os.fspath(source), files
            continue
        for path in files:
            yield path, _attempt(partial(read_image, path))


def _attempt(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except GNDetError as error:
        return error
