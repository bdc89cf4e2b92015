"""Check the image files of a dataset by their headers."""

from collections.abc import Iterator
from pathlib import Path

from ..errors import GNDetError
from ..images import read_header
from .paths import describe_outside, names_outside


def file_problems(rows: list[dict], root: Path) -> Iterator[tuple[str, str]]:
    """Yield the ``file_name`` of each image whose file cannot be used, and why not, as the end of a sentence.

    Args:
        rows: images with ``file_name``, ``height`` and ``width``.
        root: the image folder.
    """
    outside = dict(names_outside(root, [row["file_name"] for row in rows]))
    for row in rows:
        name = row["file_name"]
        if name in outside:
            yield name, describe_outside(outside[name])
        elif problem := _file_problem(root / name, row):
            yield name, problem


def _file_problem(path: Path, row: dict) -> str | None:
    """Check an image file. Only its header is read, so that a large dataset is checked in seconds."""
    if not path.is_file():
        return "does not exist"
    try:
        header = read_header(path)
    except GNDetError as error:
        return str(error).removeprefix(f"{path} ").rstrip(".")
    if header.mode in ("F", "I") or header.mode.startswith("I;16"):
        return "has more than 8 bits per channel, which detectron2 clips at 255: save it with 8 bits"
    if header.format == "TIFF" and header.orientation > 1:
        return "is a TIFF with an EXIF orientation, which detectron2 applies twice: save the rotated pixels"
    if header.size != (row.get("width"), row.get("height")):
        width, height = header.size
        return f"has {width} x {height} pixels, but the JSON declares {row.get('width')} x {row.get('height')}"
    return None


def read_size(path: Path) -> tuple[int, int] | None:
    """Return width and height in pixels of an image file; None if it cannot be read."""
    try:
        return read_header(path).size
    except GNDetError:
        return None
