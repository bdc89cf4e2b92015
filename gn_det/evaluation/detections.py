"""Read and check detections in COCO's result format.

The COCO API takes wrong values without an error: it ranks a NaN score first, a NaN box matches every object, and a
mask of another size than the image matches none. What is checked stands in the tables of rules below.
"""

from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from detectron2.structures import Instances
from pycocotools import mask as mask_util

from ..data.masks import fits_image, is_polygon
from ..errors import GNDetError
from ..files import read_json
from .hotcoco_data import SHAPE_KEYS

_LARGEST = 1e12  # of a number; larger ones overflow in the COCO API


@dataclass(frozen=True)
class Rule:
    """A condition that each detection of a file must fulfill.

    Attributes:
        problem: what is wrong if it does not hold; continues "detections whose" in the error message.
        key: the value that the error message shows as an example.
        remedy: what to do.
        holds: a function of the detection; None if the rule also depends on the annotations.
    """

    problem: str
    key: str
    remedy: str = "correct or remove them"
    holds: Callable[[dict], bool] | None = None


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST  # type: ignore[operator]


def _is_box(box: object) -> bool:
    return type(box) is list and len(box) == 4 and all(map(_is_number, box)) and min(box[2:]) >= 0


def _is_image_id(row: dict) -> bool:
    if "image_id" not in row:
        return type(row.get("file_name")) is str
    return type(row["image_id"]) in (int, str) or (type(row["image_id"]) is float and row["image_id"].is_integer())


def _is_mask(mask: object) -> bool:
    if type(mask) is list:
        return bool(mask) and all(map(is_polygon, mask))
    if type(mask) is not dict or type(mask.get("size")) is not list:
        return False
    counts = mask.get("counts")
    return type(counts) is str or (type(counts) is list and all(type(n) is int and n >= 0 for n in counts))


_RULES = (
    Rule("image_id is not an integer or text", "image_id", holds=_is_image_id),
    Rule("category_id is not an integer", "category_id", holds=lambda row: type(row["category_id"]) is int),
    Rule("score is not a finite number", "score", holds=lambda row: _is_number(row["score"])),
    Rule(
        "bbox is not [x, y, width, height] of finite numbers",
        "bbox",
        holds=lambda row: "bbox" not in row or _is_box(row["bbox"]),
    ),
    Rule(
        'segmentation is not {"size": [height, width], "counts": run lengths} and not a list of polygons of 3 or more '
        "points",
        "segmentation",
        "correct them, or remove 'segmentation' from all detections to evaluate boxes",
        holds=lambda row: "segmentation" not in row or _is_mask(row["segmentation"]),
    ),
)
_MASK_SIZE = Rule("mask does not have the size of its image", "segmentation", "write masks of that size")
_RUN_LENGTHS = Rule("run lengths do not make the pixels of the image", "segmentation")


def _check(rows: Sequence[dict], path: str | Path) -> None:
    for rule in _RULES:
        holds = rule.holds
        assert holds is not None
        _refuse([index for index, row in enumerate(rows) if not holds(row)], rule, rows, path)


def _refuse(bad: Sequence[int], rule: Rule, rows: Sequence[dict], path: str | Path) -> None:
    """Raise GNDetError if there are detections that break a rule.

    Args:
        bad: their positions in ``rows``.
    """
    if bad:
        raise GNDetError(
            f"{path} has detections whose {rule.problem} ({len(bad)} of {len(rows)}; the first is number {bad[0]}, "
            f"counted from 0, with {rule.key} {_shorten(rows[bad[0]].get(rule.key))}); {rule.remedy}."
        )


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_detections(path: str | Path) -> list[dict]:
    """Read detections from a file in COCO's result format, and check everything but their images and categories.

    Returns:
        a dict per detection, with ``category_id``, ``score``, ``bbox`` or ``segmentation`` or both, and ``image_id``, or
        ``file_name`` instead of it, as ``gn-det predict`` writes.

    Raises:
        GNDetError: the file cannot be read, is not in that format, or has values that are not valid.
    """
    rows = read_json(path, f"The detections {path}")
    keys = {"category_id", "score"}
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and keys <= row.keys() and ("image_id" in row or "file_name" in row) for row in rows
    ):
        raise GNDetError(
            f"{path} is not in COCO's result format; it must be a list of objects with category_id, image_id, score."
        )
    counts = {key: sum(key in row for row in rows) for key in SHAPE_KEYS.values()}
    if rows and not any(counts.values()):
        raise GNDetError(f"{path} has neither boxes ('bbox') nor masks ('segmentation'); only these can be evaluated.")
    for key, number in counts.items():
        if 0 < number < len(rows):
            raise GNDetError(
                f"{path} has {len(rows) - number} of {len(rows)} detections without {key!r}, which the others have; add it, "
                "or remove it from all detections."
            )
    _check(rows, path)
    return rows


def check_detections(
    rows: Sequence[dict], images: Mapping[Any, dict], categories: Container, path: str | Path
) -> list[dict]:
    """Check the images, categories and masks of detections against the annotations.

    Args:
        rows: what :func:`read_detections` returned.
        images: {image id: row of the annotations, with ``height`` and ``width``}.
        categories: ids of the categories in the annotations.
        path: the file of the detections, for the error.

    Returns:
        the detections, with ``image_id`` for each, and all masks as compressed run lengths.

    Raises:
        GNDetError: a detection is on another image or of another category, or its mask does not fit its image.
    """
    rows = _find_images(rows, images, path)
    for row in rows:
        for key, known in (("image_id", images), ("category_id", categories)):
            if row[key] not in known:
                raise GNDetError(
                    f"{path} has a detection with {key} {row[key]!r}, which is not in the annotations"
                    f"{_type_hint(row[key], known)}; pass annotations and detections of the same dataset."
                )
    if not any("segmentation" in row for row in rows):
        return rows
    return _check_masks(rows, images, path)


def _type_hint(value: object, known: Container) -> str:
    """Return a clause if the value is known as text instead of a number, or as a number instead of text."""
    if isinstance(value, str):
        return f" (they have the number {value})" if value[:18].isdecimal() and int(value[:18]) in known else ""
    return f" (they have the text {str(value)!r})" if str(value) in known else ""


def _find_images(rows: Sequence[dict], images: Mapping[Any, dict], path: str | Path) -> list[dict]:
    """Return the rows with ``image_id``, which is found by ``file_name`` where a row has only that.

    The file name in the annotations must be the end of the path in the detections.
    """
    if all("image_id" in row for row in rows):
        return [*rows]
    by_name = defaultdict(list)
    for image_id, image in images.items():
        by_name[PurePath(str(image.get("file_name", ""))).parts].append(image_id)
    found: dict[str, Any] = {}
    for name in {row["file_name"] for row in rows if "image_id" not in row}:
        parts = PurePath(name).parts
        matches = next((by_name[parts[i:]] for i in range(len(parts)) if parts[i:] in by_name), [])
        if len(matches) != 1:
            reason = "is that of several images" if matches else "is not that of an image"
            raise GNDetError(
                f"{path} has detections with the file_name {name!r}, which {reason} in the annotations; pass annotations of "
                "the images that were predicted."
            )
        found[name] = matches[0]
    return [row if "image_id" in row else {**row, "image_id": found[row["file_name"]]} for row in rows]


def _check_masks(rows: Sequence[dict], images: Mapping[Any, dict], path: str | Path) -> list[dict]:
    """Check that all masks fit their images, and return the rows with all masks as compressed run lengths."""
    sizes = [[images[row["image_id"]]["height"], images[row["image_id"]]["width"]] for row in rows]
    masks = [row["segmentation"] for row in rows]
    bad = [i for i, mask in enumerate(masks) if type(mask) is dict and mask["size"] != sizes[i]]
    _refuse(bad, _MASK_SIZE, rows, path)
    is_runs = [type(mask) is dict for mask in masks]
    bad = [i for i, mask in enumerate(masks) if is_runs[i] and not fits_image(mask, *sizes[i])]
    _refuse(bad, _RUN_LENGTHS, rows, path)
    return [
        row
        if is_runs[i] and type(masks[i]["counts"]) is str
        else {**row, "segmentation": _compress(masks[i], *sizes[i])}
        for i, row in enumerate(rows)
    ]


def _compress(mask: list | dict, height: int, width: int) -> dict:
    """Return polygons or a list of run lengths as compressed run lengths."""
    rle = mask_util.frPyObjects(mask, height, width)
    rle = mask_util.merge(rle) if isinstance(rle, list) else rle
    return {"size": [height, width], "counts": rle["counts"].decode()}


def check_finite(rows: Sequence[dict]) -> None:
    """Check that the scores and boxes of a model's detections are finite, before they are evaluated.

    Raises:
        GNDetError: they are not.
    """
    for key, where in (("score", "score"), ("bbox", "box")):
        if not np.isfinite([row[key] for row in rows if key in row]).all():
            bad = next(row for row in rows if key in row and not np.isfinite(row[key]).all())
            raise not_finite(where, [bad])


def check_instances(instances: Instances, image: Mapping) -> None:
    """Check that the scores and boxes that a model predicts for an image are finite.

    Args:
        instances: with ``scores`` and ``pred_boxes``.
        image: the input of the model, with ``file_name`` or ``image_id``, for the error.

    Raises:
        GNDetError: they are not.
    """
    for where, values in (("score", instances.scores), ("box", instances.pred_boxes.tensor)):
        if not values.isfinite().all():
            raise not_finite(where, [image])


def not_finite(where: str, images: Sequence[Mapping]) -> GNDetError:
    """Return the error for values of a model that are NaN or infinite.

    Args:
        where: what is not finite, such as "box".
        images: the images of the batch, dicts with ``file_name`` or ``image_id``.
    """
    names = ", ".join(str(image.get("file_name") or image.get("image_id")) for image in images)
    return GNDetError(
        f"The model predicts a {where} that is not finite (NaN or Inf) on {names}, so AP cannot be computed: use weights "
        "from before the training diverged, or INFERENCE.DTYPE float32 and GPU.MIXED_PRECISION False."
    )
