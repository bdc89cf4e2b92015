"""Read images of many formats into the array that a model takes: (height, width, 3), BGR, uint8.

Files are read as in training, by detectron2. EXIF orientation is applied, gray and palette images
are expanded to three channels, alpha is dropped (not blended), CMYK is converted, and the first
picture of a multi-picture file is used. The only difference is that 16-bit gray is scaled by its
full range, because detectron2 would clip it at 255. Images whose value range is unknown (floats,
32-bit integers) are refused.
"""

import glob
import os
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image

from ..errors import GNDetError
from ..images import open_image, upright

# The suffixes of the files that are read from a folder. HEIC cannot be read; it is listed so that
# such a file leads to an error instead of being ignored.
IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .dib .gif .heic .heif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .ppm .tif .tiff .webp".split()
)


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file.

    Returns:
        the pixels, (height, width, 3), BGR, uint8.

    Raises:
        GNDetError: the file does not exist, is not an image, is truncated or too large, or its pixels
            have no known range.
    """
    with open_image(path) as image:
        try:
            return _from_pil(image)
        except GNDetError as error:
            raise GNDetError(f"{path}: {error}") from None


def as_bgr(image: object) -> np.ndarray:
    """Convert an image in memory to (height, width, 3), BGR, uint8.

    Args:
        image: a PIL image, or a uint8 array of shape (height, width) or (height, width, 1) for gray,
            (height, width, 3) for BGR, or (height, width, 4) for BGRA.

    Raises:
        GNDetError: the image has another type or shape, or no pixels.
    """
    if isinstance(image, Image.Image):
        try:
            return _from_pil(image)
        except (OSError, ValueError, SyntaxError) as error:  # an opened file is decoded only now
            raise GNDetError(f"The PIL image cannot be used: {error}") from None
    if not isinstance(image, np.ndarray):
        raise GNDetError(
            f"The input is of type {type(image).__name__}; pass a path, an array, a PIL image, or a list of these."
        )
    if image.dtype != np.uint8:
        raise GNDetError(f"The array has dtype {image.dtype}; it must be uint8, with values from 0 to 255.")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise GNDetError(
            f"The array has shape {image.shape}; it must be (height, width, 3) in BGR, or (height, width) for gray."
        )
    if not image.size:
        raise GNDetError(f"The array has shape {image.shape} and contains no pixels.")
    return _three_channels(image) if image.ndim == 2 or image.shape[2] == 1 else image[:, :, :3]


def _from_pil(image: Image.Image) -> np.ndarray:
    if 0 in image.size:
        raise GNDetError(f"it has {image.size[0]} x {image.size[1]} pixels.")
    image.load()  # Pillow applies a TIFF's orientation here; detectron2 alone would apply it twice
    # Before version 11, Pillow reads 16-bit PNGs in mode "I".
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return _three_channels((np.asarray(upright(image)) >> 8).astype(np.uint8))
    if image.mode in ("F", "I"):
        kind = {"F": "floats", "I": "32-bit integers"}[image.mode]
        raise GNDetError(f"its pixels are {kind}, whose value range is unknown; save it with 8 or 16 bits per channel.")
    return convert_PIL_to_numpy(upright(image), "BGR")


def _three_channels(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray.reshape(*gray.shape[:2], 1), 3, axis=2)


def find_files(source: str | Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[str]:
    """List the files that a path, a folder, or a glob pattern stands for.

    Args:
        source: a file (returned unchanged, even if it does not exist), a folder (its files with one of
            the suffixes, sorted, without hidden files and subfolders), or a glob pattern (the files that
            match, sorted).
        suffixes: lower-case suffixes of the files to take from a folder.

    Raises:
        GNDetError: the folder or pattern yields no file, or the source is a URL.
    """
    name = os.path.expanduser(source)
    if "://" in name:
        raise GNDetError(f"{name} is a URL, but only local files can be read; download it first.")
    if os.path.isdir(name):
        paths = [os.path.join(name, file) for file in sorted(os.listdir(name)) if not file.startswith(".")]
        files = [path for path in paths if os.path.isfile(path) and Path(path).suffix.lower() in suffixes]
        if not files:
            below = os.path.join(name, "*", "*")
            raise GNDetError(
                f"The folder {name} contains no images itself; use the pattern {below} for those in its subfolders."
            )
        return files
    if os.path.exists(name) or not glob.has_magic(name):
        return [name]
    files = sorted(path for path in glob.glob(name, recursive=True) if os.path.isfile(path))
    if not files:
        raise GNDetError(f"No file matches {name}.")
    return files


def read_all(inputs: object) -> Iterator[tuple[str | int, np.ndarray | GNDetError]]:
    """Read every image of one input, or of an iterable of inputs.

    Args:
        inputs: a path, folder, glob pattern, array, or PIL image, or an iterable of these.

    Yields:
        for each image, its path (for an image in memory, its position among the inputs) and its pixels,
        (height, width, 3), BGR, uint8. If the image cannot be read, the error replaces the pixels.
    """
    single = isinstance(inputs, str | os.PathLike | np.ndarray | Image.Image)
    try:
        sources = iter([inputs] if single else inputs)  # type: ignore[call-overload]
    except TypeError:
        sources = iter([inputs])
    for position, source in enumerate(sources):
        if not isinstance(source, str | os.PathLike):
            yield position, _result_or_error(partial(as_bgr, source))
            continue
        files = _result_or_error(partial(find_files, os.fspath(source)))
        if isinstance(files, GNDetError):
            yield os.fspath(source), files
            continue
        for path in files:
            yield path, _result_or_error(partial(read_image, path))


def _result_or_error(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except GNDetError as error:
        return error
