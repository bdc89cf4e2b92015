"""Tests and repairs of the fields of an annotation, for :mod:`gn_det.data.annotation_rules`.

The functions take an annotation and what is known of the others.
"""

import math
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from .masks import (
    area_of_mask,
    box_as_polygon,
    box_of_mask,
    fits_image,
    is_empty,
    is_polygon,
    normalize_mask,
    reread_runs,
)
from .values import as_flag, as_id, as_number, as_numbers, as_whole, is_numbers, show

_OUTSIDE = 1.0  # pixels by which a box may extend beyond its image


@dataclass
class Annotations:
    """What the rules know of the annotations.

    Attributes:
        images: {id: row of the image}.
        image_ids: {id of an image in the file, or the same in another type: id in the clean copy}.
        categories: ids of the categories.
        has_masks: whether any annotation has a mask.
        seen: {key of the content: the first row with it}.
        last_mask: the mask that was checked last, and whether it is bad.
    """

    images: dict
    image_ids: dict
    categories: set
    has_masks: bool
    seen: dict[int, dict] = field(default_factory=dict)
    last_mask: tuple[Any, bool] = (None, False)

    def size(self, row: dict) -> tuple[int, int]:
        """Return width and height of the image of an annotation."""
        image = self.images[row["image_id"]]
        return image["width"], image["height"]


def name_of(row: dict) -> str:
    """Return how messages call an annotation."""
    return f"annotation {show(row.get('id'))}"


def find_image(row: dict, known: Annotations) -> int | str | None:
    """Return the id of the image of an annotation; None if there is no such image."""
    value = row.get("image_id")
    if type(value) in (int, str) and value in known.image_ids:
        return known.image_ids[value]
    return known.image_ids.get(as_id(value))


def has_other_image_id(row: dict, known: Annotations) -> bool:
    """Test whether the image_id is that of an image only after a conversion."""
    value = row.get("image_id")
    if type(value) in (int, str) and value in known.images:
        return False
    return find_image(row, known) is not None


def describe_image_id(row: dict, known: Annotations) -> str:
    """Describe an image_id of another type."""
    return f"{name_of(row)} has image_id {show(row['image_id'])}, and the image has id {show(find_image(row, known))}"


def set_image_id(row: dict, known: Annotations) -> bool:
    """Replace the image_id by the id of the image."""
    row["image_id"] = find_image(row, known)
    return True


def has_other_category_id(row: dict, known: Annotations) -> bool:
    """Test whether the category_id is that of a category only after a conversion."""
    value = row.get("category_id")
    return type(value) is not int and as_whole(value) in known.categories


def set_category_id(row: dict, known: Annotations) -> bool:
    """Replace the category_id by the integer id of the category."""
    row["category_id"] = as_whole(row["category_id"])
    return True


def lacks_category(row: dict, known: Annotations) -> bool:
    """Test whether there is no category with the category_id."""
    return type(row.get("category_id")) is not int or row["category_id"] not in known.categories


def has_other_flag(row: dict, known: Annotations) -> bool:
    """Test whether iscrowd is there and neither 0 nor 1."""
    return "iscrowd" in row and (type(row["iscrowd"]) is not int or row["iscrowd"] not in (0, 1))


def set_flag(row: dict, known: Annotations) -> bool:
    """Replace iscrowd by the 0 or 1 that it means."""
    row["iscrowd"] = as_flag(row["iscrowd"])
    return True


def clear_flag(row: dict, known: Annotations) -> bool:
    """Set iscrowd to 0."""
    row["iscrowd"] = 0
    return True


def ignore(row: dict, known: Annotations) -> bool:
    """Make an annotation to be ignored a crowd region."""
    del row["ignore"]
    row["iscrowd"] = 1
    return True


def has_other_box(row: dict, known: Annotations) -> bool:
    """Test whether the bbox has numbers as text."""
    box = row.get("bbox")
    return type(box) is list and len(box) == 4 and not is_numbers(box) and as_numbers(box) is not None


def set_box(row: dict, known: Annotations) -> bool:
    """Replace numbers as text in the bbox."""
    row["bbox"] = as_numbers(row["bbox"])
    return True


def has_other_mask(row: dict, known: Annotations) -> bool:
    """Test whether the mask is in another form of the same values."""
    mask = row.get("segmentation")
    return bool(mask) and normalize_mask(mask) is not mask


def set_mask(row: dict, known: Annotations) -> bool:
    """Replace the mask by COCO's form of it."""
    row["segmentation"] = normalize_mask(row["segmentation"])
    return True


def has_bad_mask(row: dict, known: Annotations) -> bool:
    """Test whether there is a mask that cannot be read, or is empty."""
    mask = row.get("segmentation")
    if mask is not known.last_mask[0] or mask is None:  # several rules ask
        known.last_mask = (mask, not is_empty(mask) and not _is_valid(mask, *known.size(row)))
    return known.last_mask[1]


def _is_valid(mask: Any, width: int, height: int) -> bool:
    valid = fits_image(mask, height, width) if type(mask) is dict else type(mask) is list and all(map(is_polygon, mask))
    return valid and box_of_mask(mask) is not None


def describe_mask(row: dict, known: Annotations) -> str:
    """Describe a mask that cannot be read, or is empty."""
    mask, (width, height) = row["segmentation"], known.size(row)
    if type(mask) is list:
        part = next((part for part in mask if not is_polygon(part)), None)
        if part is None:
            return f"{name_of(row)} has a mask without area: {show(mask)}"
        return (
            f"{name_of(row)} has a polygon that is not a list [x1, y1, x2, y2, ...] of at least 3 points: {show(part)}"
        )
    if type(mask) is not dict:
        return f"{name_of(row)} has a mask that is neither polygons nor run lengths: {show(mask)}"
    if mask.get("size") != [height, width]:
        return (
            f"{name_of(row)} has a run-length mask whose size is not the image's size [{height}, {width}], but "
            f"{show(mask.get('size'))}"
        )
    counts = show(mask.get("counts"))
    if fits_image(mask, height, width):
        return f"{name_of(row)} has a mask without area: {counts}"
    return f"{name_of(row)} has a run-length mask whose runs do not make {height} x {width} pixels: {counts}"


def has_some_polygons(row: dict, known: Annotations) -> bool:
    """Test whether some of the polygons are valid, and others are not."""
    mask = row.get("segmentation")
    return type(mask) is list and has_bad_mask(row, known) and box_of_mask(valid_polygons(mask)) is not None


def valid_polygons(mask: list) -> list:
    """Return the polygons of at least 3 points."""
    return [part for part in mask if is_polygon(part)]


def keep_polygons(row: dict, known: Annotations) -> bool:
    """Leave out the polygons that are not valid."""
    row["segmentation"] = valid_polygons(row["segmentation"])
    return True


def reread_mask(row: dict, known: Annotations) -> dict | None:
    """Return the reading of run lengths that fits the box; None if none does, or if the mask is valid."""
    mask, box = row.get("segmentation"), row.get("bbox")
    if type(mask) is not dict or not has_bad_mask(row, known) or not is_box(box):
        return None
    width, height = known.size(row)
    return reread_runs(mask, height, width, box)


def set_reread_mask(row: dict, known: Annotations) -> bool:
    """Replace run lengths by the reading that fits the box."""
    row["segmentation"] = reread_mask(row, known)
    return True


def replace_mask(row: dict, known: Annotations) -> bool:
    """Make the box the mask, if there is a box."""
    row.pop("segmentation")
    return set_box_mask(row, known) if is_box(row.get("bbox")) else True


def remove_mask(row: dict, known: Annotations) -> bool:
    """Remove the mask."""
    row.pop("segmentation", None)
    return True


def is_box(box: Any) -> TypeGuard[list]:
    """Return whether a value is [x, y, width, height] with a width and height above 0."""
    return is_numbers(box) and len(box) == 4 and box[2] > 0 and box[3] > 0


def mask_box(row: dict, known: Annotations) -> list | None:
    """Return the box around the mask; None if there is no valid mask."""
    mask = row.get("segmentation")
    valid = (
        fits_image(mask, *known.size(row)[::-1])
        if type(mask) is dict
        else type(mask) is list and all(map(is_polygon, mask))
    )
    return box_of_mask(mask) if valid and not is_empty(mask) else None


def is_flat(row: dict, known: Annotations) -> bool:
    """Test for a box of width or height 0, which no mask can replace."""
    box = row.get("bbox")
    return is_numbers(box) and len(box) == 4 and min(box[2:]) == 0 and mask_box(row, known) is None


def describe_box(row: dict, known: Annotations) -> str:
    """Describe a bbox that cannot be used."""
    box = row.get("bbox")
    if is_numbers(box) and len(box) == 4:
        return f"{name_of(row)} has the bbox {show(box)}, whose width or height is not above 0"
    return f"{name_of(row)} has the bbox {show(box)}, which is not [x, y, width, height]"


def box_from_mask(row: dict, known: Annotations) -> bool:
    """Compute the bbox from the mask."""
    row["bbox"] = mask_box(row, known)
    return True


def is_outside(row: dict, known: Annotations) -> bool:
    """Test whether the bbox lies outside its image."""
    (width, height), (x, y, w, h) = known.size(row), row["bbox"]
    return bool(x >= width or y >= height or x + w <= 0 or y + h <= 0)


def extends_outside(row: dict, known: Annotations) -> bool:
    """Test whether the bbox extends beyond its image by more than a pixel."""
    (width, height), (x, y, w, h) = known.size(row), row["bbox"]
    return bool(min(x, y, width - x - w, height - y - h) < -_OUTSIDE)


def clip(row: dict, known: Annotations) -> bool:
    """Clip the bbox to its image."""
    (width, height), (x, y, w, h) = known.size(row), row["bbox"]
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    row["bbox"] = [x0, y0, x1 - x0, y1 - y0]
    return True


def describe_outside(row: dict, known: Annotations) -> str:
    """Describe a bbox that lies outside its image, or extends beyond it."""
    width, height = known.size(row)
    subject = f"{name_of(row)} has the bbox {show(row['bbox'])}"
    if is_outside(row, known):
        return f"{subject}, which lies outside its image of {width} x {height}"
    return f"{subject}, which extends beyond its image of {width} x {height}"


def lacks_mask(row: dict, known: Annotations) -> bool:
    """Test whether the mask is missing, although other annotations have one."""
    return known.has_masks and is_empty(row.get("segmentation"))


def set_box_mask(row: dict, known: Annotations) -> bool:
    """Make the box the mask."""
    row["segmentation"] = box_as_polygon(row["bbox"])
    return True


def has_other_area(row: dict, known: Annotations) -> bool:
    """Test for an area that is no number, not positive, or the share of an image."""
    if "area" not in row:
        return False
    area = row["area"]
    if type(area) not in (int, float) or not math.isfinite(area) or area <= 0:
        return True
    return area <= 1 and row["bbox"][2] * row["bbox"][3] >= 100


def set_area(row: dict, known: Annotations) -> bool:
    """Replace the area by a number: the same, or computed from the mask or the box."""
    area = as_number(row["area"])
    if area is None or has_other_area({**row, "area": area}, known):
        area = compute_area(row)
    row["area"] = area
    return True


def compute_area(row: dict) -> float:
    """Return the area of the mask of a valid annotation, or of its box if it has no mask."""
    mask = row.get("segmentation")
    area = 0 if is_empty(mask) else area_of_mask(mask)
    return area or row["bbox"][2] * row["bbox"][3]


def is_duplicate(row: dict, known: Annotations) -> bool:
    """Test whether an earlier annotation has the same content; the first one is remembered."""
    key = hash((row["image_id"], row["category_id"], *row["bbox"]))
    first = known.seen.setdefault(key, row)
    keys = ("image_id", "category_id", "bbox", "segmentation", "iscrowd")
    return first is not row and all(first.get(key) == row.get(key) for key in keys)
