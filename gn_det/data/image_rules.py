"""Rules for the images of an annotation file."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .find_files import FileFinder, is_below
from .rules import Action, Rule, leave_out, unrepairable
from .values import as_id, as_whole, show


@dataclass
class Images:
    """What the rules know of the images.

    Attributes:
        root: the image folder; None if there are no files.
        read_size: returns width and height in pixels of an image file; None if it cannot be read.
        by_id: {id: the row with it}.
        files: finds the image files.
    """

    root: Path | None
    read_size: Callable[[Path], tuple[int, int] | None]
    by_id: dict[int | str, dict] = field(default_factory=dict)
    files: FileFinder = field(init=False)

    def __post_init__(self) -> None:
        self.files = FileFinder(self.root or "")


def _name(row: dict) -> str:
    return f"image {show(row['id'] if as_id(row.get('id')) is not None else row.get('file_name'))}"


def _is_typed(row: dict, images: Images) -> bool:
    keys = [key for key in ("height", "width") if as_whole(row.get(key)) is not None and type(row[key]) is not int]
    return bool(keys) or (type(row.get("id")) is float and as_whole(row["id"]) is not None)


def _set_types(row: dict, images: Images) -> bool:
    for key in ("height", "width"):
        if (number := as_whole(row.get(key))) is not None:
            row[key] = number
    if type(row.get("id")) is float:
        row["id"] = as_whole(row["id"])
    return True


def _describe_types(row: dict, images: Images) -> str:
    return f"{_name(row)} has height {show(row.get('height'))} and width {show(row.get('width'))}"


def _is_repeated(row: dict, images: Images) -> bool:
    """Test whether an earlier row is of the same image; the first one is remembered."""
    first = images.by_id.setdefault(row["id"], row)
    return first is not row and first.get("file_name") == row.get("file_name")


def _has_size(row: dict) -> bool:
    return all(type(row.get(key)) is int and row[key] > 0 for key in ("height", "width"))


def _read_size(row: dict, images: Images) -> bool | None:
    """Take the size from the file."""
    if images.root is None or not images.files.has(row["file_name"]):
        return None
    size = images.read_size(images.root / row["file_name"])
    if size is not None:
        row["width"], row["height"] = size
    return True if size else None


def _is_misspelled(row: dict, images: Images) -> bool:
    name = row["file_name"]
    return images.root is not None and not images.files.has(name) and images.files.same_path(name) is not None


def _respell(row: dict, images: Images) -> bool:
    row["file_name"] = images.files.same_path(row["file_name"])
    return True


def _is_of_other_folder(row: dict, images: Images) -> bool:
    name = row["file_name"]
    return images.root is not None and not images.files.has(name) and images.files.same_end(name) is not None


def _move(row: dict, images: Images) -> bool:
    row["file_name"] = images.files.same_end(row["file_name"])
    return True


IMAGE_RULES = (
    Rule(
        "image: numbers of another type",
        Action.READ,
        _is_typed,
        _describe_types,
        _set_types,
        "numbers as text and whole floats are read as integers",
    ),
    Rule(
        "image: no id",
        Action.HAND,
        lambda row, images: type(row.get("id")) not in (int, str),
        lambda row, images: (
            f"image {show(row.get('file_name'))} has no id, or one of another type: {show(row.get('id'))}"
        ),
        unrepairable,
        "the id has to be an integer or text",
    ),
    Rule(
        "image: listed twice",
        Action.READ,
        _is_repeated,
        lambda row, images: f"{_name(row)} is listed twice with the same file",
        leave_out,
        "it is read once",
    ),
    Rule(
        "image: same id",
        Action.HAND,
        lambda row, images: images.by_id[row["id"]] is not row,
        lambda row, images: f"two images have the id {show(row['id'])}",
        unrepairable,
        "give each image an id of its own",
    ),
    Rule(
        "image: no file name",
        Action.HAND,
        lambda row, images: type(row.get("file_name")) is not str or not row["file_name"],
        lambda row, images: f"{_name(row)} has no file_name",
        unrepairable,
        "write the path of the file, relative to the image folder",
    ),
    Rule(
        "image: file name of another system",
        Action.READ,
        _is_misspelled,
        lambda row, images: (
            f"{_name(row)} has the file_name {show(row['file_name'])}, and the file is "
            f"{images.files.same_path(row['file_name'])}"
        ),
        _respell,
        "the file is read whose name differs only in separators, case or Unicode form",
    ),
    Rule(
        "image: path of another folder",
        Action.FIX,
        _is_of_other_folder,
        lambda row, images: (
            f"{images.root}/{row['file_name']} "
            + ("does not exist" if is_below(row["file_name"]) else "points outside the image folder")
            + f", but {images.root}/{images.files.same_end(row['file_name'])} exists"
        ),
        _move,
        "the file with the same last part of the path is taken",
    ),
    Rule(
        "image: file name outside",
        Action.HAND,
        lambda row, images: not is_below(row["file_name"]),
        lambda row, images: (
            f"the file_name {row['file_name']!r} of {_name(row)} points outside {images.root or 'the image folder'}"
        ),
        unrepairable,
        "write the path relative to the image folder",
    ),
    Rule(
        "image: no size",
        Action.FIX,
        lambda row, images: not _has_size(row),
        lambda row, images: (
            f"{_name(row)} has no height and width in pixels: {show(row.get('height'))} and {show(row.get('width'))}"
        ),
        _read_size,
        "the size of the image file is taken",
    ),
)
