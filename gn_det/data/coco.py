"""Check annotation files in COCO format and register them as datasets of detectron2.

Importing this module registers the generated datasets ``shapes_train`` and ``shapes_val``; their files
are generated at first use.
"""

import functools
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from ..errors import GNDetError
from ..files import save_json
from ..images import read_header
from . import shapes
from .paths import check_file_names, describe_outside, names_outside

logger = logging.getLogger(__name__)

_MAX_PROBLEMS = 5  # problems listed in an error; the rest are counted


def dataset_root() -> Path:
    """Return the folder of detectron2's built-in datasets: ``$DETECTRON2_DATASETS``, by default ``./datasets``."""
    return Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))


def register_coco_json(name: str, json_file: str | Path, image_root: str | Path, clean_file: str | Path) -> dict:
    """Check a dataset in COCO format and register it under ``name``.

    detectron2 and the COCO API require fields that real files often lack: ``info``, ``iscrowd``, ``area``,
    and annotation ids that start at 1 (the COCO API counts an object with id 0 as never detected). A copy
    of the JSON with these fields is written, and the dataset is read from the copy.

    Args:
        json_file: the annotations.
        image_root: the folder that the file names of the images are relative to.
        clean_file: the path of the copy.

    Returns:
        A dict with

        - "classes": list of class names, ordered by category id
        - "images": number of images
        - "objects": number of objects, without crowd regions
        - "masks": bool, whether any object has a mask
        - "rle": bool, whether any of the masks is run-length encoded

    Raises:
        GNDetError: a file or folder is missing, or the JSON has problems. The error lists the first five
            problems and counts the rest.
    """
    data = read_annotations(json_file)
    if not Path(image_root).is_dir():
        raise GNDetError(f"The image folder {image_root} for {json_file} does not exist.")
    return _check_and_register(name, json_file, data, Path(image_root), Path(clean_file))


def register_annotations(name: str, json_file: str | Path, clean_file: str | Path) -> dict:
    """Register a dataset without image files, to evaluate given detections.

    Args, return value and errors are those of :func:`register_coco_json`.
    """
    return _check_and_register(name, json_file, read_annotations(json_file), None, Path(clean_file))


def _check_and_register(
    name: str, json_file: str | Path, data: dict, image_root: Path | None, clean_file: Path
) -> dict:
    problems = list(_find_problems(data, image_root))
    if problems:
        rest = [f"and {len(problems) - _MAX_PROBLEMS} more"] * (len(problems) > _MAX_PROBLEMS)
        listed = "; ".join(problems[:_MAX_PROBLEMS] + rest)
        raise GNDetError(f"{json_file} has {len(problems)} problem{'s' * (len(problems) > 1)}: {listed}.")
    facts = _clean(data)
    save_json(clean_file, data, indent=None)
    load = functools.partial(load_coco_json, str(clean_file), str(image_root or ""), name)
    ids = sorted(row["id"] for row in data["categories"])
    _register(name, load, clean_file, image_root or "", facts["classes"], ids)
    return facts


def register_again(name: str, json_file: str, image_root: str, classes: list[str], ids: list[int]) -> None:
    """Register the dataset of an earlier run, which checked and cleaned its JSON.

    The file is read when the dataset is first used.

    Args:
        json_file: the cleaned copy that :func:`register_coco_json` wrote.
        ids: the category ids in the file, in the order of ``classes``.
    """
    load = functools.partial(_load_again, json_file, image_root, name)
    _register(name, load, Path(json_file), image_root, classes, ids)


def _load_again(json_file: str, image_root: str, name: str) -> list[dict]:
    if problem := next(_image_problems(read_annotations(json_file)["images"], None), None):
        raise GNDetError(f"{json_file} has changed since the run: {problem}.")
    rows = load_coco_json(json_file, image_root, name)
    check_file_names([name], rows)
    return rows


def _register(
    name: str,
    load: Callable[[], list[dict]],
    json_file: Path,
    image_root: Path | str,
    classes: list[str],
    ids: list[int],
) -> None:
    """Register a dataset with all metadata that detectron2's evaluator needs.

    Otherwise the evaluator would work only after the dataset was loaded.
    """
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        json_file=str(json_file),
        image_root=str(image_root),
        evaluator_type="coco",
        thing_classes=classes,
        thing_dataset_id_to_contiguous_id={number: index for index, number in enumerate(ids)},
    )


def read_annotations(json_file: str | Path) -> dict:
    """Read an annotation file in COCO format without further checks.

    Returns:
        The content of the JSON, a dict with at least the lists of dicts "images", "annotations" and
        "categories".

    Raises:
        GNDetError: the file does not exist, is not JSON, or lacks one of these lists.
    """
    try:
        data = json.loads(Path(json_file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GNDetError(f"The annotation file {json_file} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise GNDetError(f"The annotation file {json_file} cannot be read as JSON: {error}.") from None
    for key in ("images", "annotations", "categories"):
        rows = data.get(key) if isinstance(data, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise GNDetError(f"{json_file} is not in COCO format: it has no list {key!r} of JSON objects.")
    return data


def _find_problems(data: dict, image_root: Path | None) -> Iterator[str]:
    """Yield each problem that would make training or evaluation wrong, as a part of a sentence."""
    yield from _category_problems(data["categories"])
    yield from _image_problems(data["images"], image_root)
    images = {_valid_id(row.get("id")): row for row in data["images"]}
    categories = {_valid_id(row.get("id")) for row in data["categories"]}
    has_masks = any(row.get("segmentation") for row in data["annotations"])
    for number, row in enumerate(data["annotations"]):
        where = f"annotation {row.get('id', f'number {number}')}"
        image = images.get(_valid_id(row.get("image_id")))
        if image is None:
            yield f"{where} has image_id {row.get('image_id')}, which is not among the images"
            continue
        if _valid_id(row.get("category_id")) not in categories:
            yield f"{where} has category_id {row.get('category_id')}, which is not among the categories"
        if problem := _box_problem(row.get("bbox"), image):
            yield f"{where} {problem}"
        if has_masks and (problem := _mask_problem(row.get("segmentation"), image)):
            yield f"{where} {problem}"


def _valid_id(value: object) -> object:
    """Return ``value`` if it is an int or str, as ids are, else None."""
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _category_problems(rows: list[dict]) -> Iterator[str]:
    if not rows:
        yield "it has no categories"
    for key, kind in (("id", int), ("name", str)):
        seen = set()
        for row in rows:
            value = row.get(key)
            if not isinstance(value, kind) or isinstance(value, bool):
                yield f"category {row} has no {key} of type {kind.__name__}"
            elif value in seen:
                yield f"two categories have the {key} {value!r}"
            else:
                seen.add(value)


def _image_problems(rows: list[dict], image_root: Path | None) -> Iterator[str]:
    if not rows:
        yield "it has no images"
    names = [row["file_name"] for row in rows if isinstance(row.get("file_name"), str)]
    outside = dict(names_outside(image_root, names)) if image_root else {}
    seen = set()
    for row in rows:
        number, name = row.get("id"), row.get("file_name")
        if _valid_id(number) is None:
            yield f"image {name} has no id"
        elif number in seen:
            yield f"two images have the id {number}"
        seen.add(_valid_id(number))
        if not all(isinstance(row.get(key), int) and row[key] > 0 for key in ("height", "width")):
            yield f"image {number} has no height and width in pixels"
        if not isinstance(name, str) or not name:
            yield f"image {number} has no file_name"
        elif Path(name).is_absolute() or ".." in Path(name).parts or "://" in name:
            yield f"the file_name {name!r} of image {number} points outside {image_root or 'the image folder'}"
        elif name in outside:
            yield f"{image_root}/{name} {describe_outside(outside[name])}"
        elif image_root and (problem := _file_problem(image_root / name, row)):
            yield f"{image_root / name} {problem}"


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


def _is_number_list(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )


def _box_problem(box: Any, image: dict) -> str | None:
    if not _is_number_list(box) or len(box) != 4:
        return f"has the bbox {box}, which is not [x, y, width, height]"
    x, y, w, h = box
    if w <= 0 or h <= 0:
        return f"has the bbox {box}, whose width or height is not above 0"
    if x >= (image.get("width") or 0) or y >= (image.get("height") or 0) or x + w <= 0 or y + h <= 0:
        return f"has the bbox {box}, which lies outside its image of {image.get('width')} x {image.get('height')}"
    return None


def _mask_problem(mask: object, image: dict) -> str | None:
    if isinstance(mask, dict):
        size = [image.get("height"), image.get("width")]
        if mask.get("size") != size or not isinstance(mask.get("counts"), str | list):
            return f"has a run-length mask whose size is not the image's size {size}"
        return None
    if not isinstance(mask, list) or not mask:
        return "has no segmentation, but other annotations have one"
    if not all(_is_number_list(polygon) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in mask):
        return "has a polygon that is not a list [x1, y1, x2, y2, ...] of at least 3 points"
    return None


def _clean(data: dict) -> dict:
    """Add missing fields that the COCO API requires, in place, and return the facts on the dataset."""
    data.setdefault("info", {})
    data.setdefault("licenses", [])
    for number, row in enumerate(data["annotations"], start=1):
        row["id"] = number
        row.setdefault("iscrowd", 0)
        row.setdefault("area", row["bbox"][2] * row["bbox"][3])
    objects = [row for row in data["annotations"] if not row["iscrowd"]]
    return {
        "classes": [row["name"] for row in sorted(data["categories"], key=lambda row: row["id"])],
        "images": len(data["images"]),
        "objects": len(objects),
        "masks": any(row.get("segmentation") for row in objects),
        "rle": any(isinstance(row.get("segmentation"), dict) for row in objects),
    }


def _load_shapes(split: str) -> list[dict]:
    root = dataset_root() / "shapes"
    if not root.exists():
        logger.info(f"Generating the sample dataset of shapes in {root}.")
    json_file, images = shapes.generate(root)[split]
    return load_coco_json(str(json_file), str(images), f"shapes_{split}")


def _register_shapes() -> None:
    classes, root = list(shapes.CLASSES), dataset_root() / "shapes"
    for split in ("train", "val"):
        ids = list(range(1, len(classes) + 1))
        load = functools.partial(_load_shapes, split)
        _register(f"shapes_{split}", load, root / f"{split}.json", root / split, classes, ids)


_register_shapes()
