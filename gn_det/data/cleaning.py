"""Turn annotations of any program into a clean copy that detectron2 and the COCO API read as they are meant."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .annotation_fields import Annotations, compute_area
from .annotation_rules import ANNOTATION_RULES, BOX_RULES
from .category_rules import CATEGORY_RULES, NAME_RULES, Categories
from .image_rules import IMAGE_RULES, Images
from .masks import is_empty
from .rules import Action, Problems, apply_rules
from .values import as_id, show


@dataclass(frozen=True)
class Options:
    """How annotations are checked.

    Attributes:
        image_root: the image folder; None to check no files.
        masks: whether masks are used. Otherwise, faulty masks are removed, and missing ones are accepted.
        fix: whether to repair what is accepted as it is, such as duplicates.
    """

    image_root: Path | None = None
    masks: bool = True
    fix: bool = False


def clean(data: dict, options: Options, read_size: Callable[[Path], tuple[int, int] | None]) -> Problems:
    """Check and repair annotations in place.

    Fields that the COCO API requires and many files lack are added, and annotations are numbered from 1,
    because the COCO API counts an object with id 0 as never detected.

    Args:
        data: the content of the file.
        options: how to check.
        read_size: returns width and height in pixels of an image file; None if it cannot be read.

    Returns:
        the problems. If any of them is refused, ``data`` must not be used, unless all of them are repaired by
        ``--fix`` and this is wanted.
    """
    problems = Problems()
    _add_lists(data, problems)
    images, categories = data["images"], data["categories"]
    seen = Images(options.image_root, read_size)
    data["images"] = apply_rules(IMAGE_RULES, images, seen, problems, options.fix)
    image_ids = _unify_ids(data["images"], problems)
    merged = _clean_categories(data, problems, options.fix)
    _leave_out_followers(data, images, categories, image_ids, merged)
    known = Annotations(
        images={row["id"]: row for row in data["images"]},
        image_ids=image_ids,
        categories={row["id"] for row in data["categories"]},
        has_masks=not all(is_empty(row.get("segmentation")) for row in data["annotations"]),
    )
    rules = ANNOTATION_RULES if options.masks else BOX_RULES
    data["annotations"] = apply_rules(rules, data["annotations"], known, problems, options.fix)
    _check_crowds(data["annotations"], problems, options.fix)
    for number, row in enumerate(data["annotations"], start=1):
        _complete(row, number)
    return problems


def _add_lists(data: dict, problems: Problems) -> None:
    """Add the lists that may be missing."""
    data.setdefault("info", {})
    data.setdefault("licenses", [])
    if data.get("annotations") is None:
        data["annotations"] = []
        problems.add(
            "no annotations",
            Action.READ,
            "all images are without objects",
            "the file has no list 'annotations'",
        )
    for key in ("images", "categories"):
        if not data[key]:
            problems.add(f"no {key}", Action.HAND, f"add the {key}", f"it has no {key}")


def _clean_categories(data: dict, problems: Problems, fix: bool) -> dict[int, int]:
    """Check and repair the categories, and return {id: id of the category into which it was merged}."""
    known = Categories.of(data["categories"], data["annotations"])
    rows = apply_rules(CATEGORY_RULES, data["categories"], known, problems, fix)
    known.names.update(row["name"] for row in rows)
    data["categories"] = apply_rules(NAME_RULES, rows, known, problems, fix)
    return known.merged


def _leave_out_followers(data: dict, images: list, categories: list, image_ids: dict, merged: dict) -> None:
    """Rename merged categories, and leave out annotations of images and categories that have a problem themselves.

    Args:
        images, categories: the rows before they were checked.
    """
    bad_images = {as_id(row.get("id")) for row in images} - {as_id(id_) for id_ in image_ids}
    kept = {row["id"] for row in data["categories"]} | merged.keys()
    bad_categories = {as_id(row.get("id")) for row in categories} - kept
    rows = data["annotations"]
    if bad_images or bad_categories:
        pairs = ((row, as_id(row.get("image_id")), as_id(row.get("category_id"))) for row in rows)
        data["annotations"] = [
            row for row, image, category in pairs if not (image in bad_images or category in bad_categories)
        ]
    for row in data["annotations"] if merged else ():
        number = as_id(row.get("category_id"))
        if number in merged:
            row["category_id"] = merged[number]


def _unify_ids(images: list[dict], problems: Problems) -> dict:
    """Give all images ids of one type, in place.

    Returns:
        {id in the file, and, where it is unique, the same in the other type: id after the change}
    """
    types = {type(row["id"]) for row in images}
    if len(types) > 1:
        convert = as_id if all(type(as_id(row["id"])) is int for row in images) else str
        new = [convert(row["id"]) for row in images]
        action = Action.READ if len(set(new)) == len(new) else Action.HAND
        example = next(row["id"] for row in images if type(row["id"]) is not type(images[0]["id"]))
        problems.add(
            "image: ids of several types",
            action,
            "all ids are read as integers, or as text if some are not numbers",
            f"images have the ids {show(images[0]['id'])} and {show(example)}, one a number and one text",
        )
    else:
        new = [row["id"] for row in images]
    ids = {row["id"]: to for row, to in zip(images, new, strict=True)}
    others: dict = {}
    for to, row in zip(new, images, strict=True):
        other = as_id(row["id"])
        others[other] = None if other in others else to
        row["id"] = to
    return {other: to for other, to in others.items() if to is not None} | ids


def _check_crowds(rows: list[dict], problems: Problems, fix: bool) -> None:
    if not rows or not all(row.get("iscrowd") for row in rows):
        return
    problems.add(
        "all are crowd regions",
        Action.NOTE,
        "iscrowd is set to 0: some programs, among them CVAT, write 1 for every run-length mask",
        f"all {len(rows):,} annotations have iscrowd 1",
    )
    for row in rows if fix else ():
        row["iscrowd"] = 0


def _complete(row: dict, number: int) -> None:
    row["id"] = number
    row.setdefault("iscrowd", 0)
    row.pop("ignore", None)  # which is 0
    if is_empty(row.get("segmentation")):
        row.pop("segmentation", None)
    if "area" not in row:
        row["area"] = compute_area(row)
