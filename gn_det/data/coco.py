"""COCO-format JSON -> a data set registered with detectron2, checked first. Nothing is read at import."""

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
from PIL import Image

from ..errors import GNDetError
from ..files import save_json
from . import shapes

logger = logging.getLogger(__name__)

_ORIENTATION = 0x0112  # EXIF's tag; from 5 on width and height change places
_SHOWN = 5  # problems of a file that are written out; the rest are counted


def dataset_root() -> Path:
    """Where detectron2's built-in data sets lie: ``$DETECTRON2_DATASETS``, or ``datasets`` in the current folder."""
    return Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))


def register_coco_json(name: str, json_file: str | Path, image_root: str | Path, clean_file: str | Path) -> dict:
    """Register a COCO-format data set under ``name``, after its JSON was checked.

    The data set is read from ``clean_file``, a copy that has what detectron2 and the COCO API take for granted and real
    files lack: ``info``, ``iscrowd``, ``area``, and annotation ids from 1 (the COCO API scores an object of id 0 as
    never found).

    Returns:
        {"classes": names in the order of the category ids, "images": number, "objects": number without crowds,
        "masks": whether objects have masks, "rle": whether some of these are run-length encoded}.

    Raises:
        GNDetError: a file or folder is missing, or the JSON has problems; it names the first five and counts the rest.
    """
    data = read_annotations(json_file)
    if not Path(image_root).is_dir():
        raise GNDetError(f"The image folder {image_root} of {json_file} is not there.")
    return _check_and_register(name, json_file, data, Path(image_root), Path(clean_file))


def register_annotations(name: str, json_file: str | Path, clean_file: str | Path) -> dict:
    """:func:`register_coco_json` without images, to evaluate given detections."""
    return _check_and_register(name, json_file, read_annotations(json_file), None, Path(clean_file))


def _check_and_register(
    name: str, json_file: str | Path, data: dict, image_root: Path | None, clean_file: Path
) -> dict:
    problems = list(_problems(data, image_root))
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] * (len(problems) > _SHOWN)
        shown = "; ".join(problems[:_SHOWN] + more)
        raise GNDetError(f"{json_file} has {len(problems)} problem{'s' * (len(problems) > 1)}: {shown}.")
    facts = _clean(data)
    save_json(clean_file, data, indent=None)
    load = functools.partial(load_coco_json, str(clean_file), str(image_root or ""), name)
    ids = sorted(row["id"] for row in data["categories"])
    _register(name, load, clean_file, image_root or "", facts["classes"], ids)
    return facts


def register_again(name: str, json_file: str, image_root: str, classes: list[str], ids: list[int]) -> None:
    """Register the data set of an earlier run, whose JSON was checked then. It is read when it is asked for."""
    load = functools.partial(_load_again, json_file, image_root, name)
    _register(name, load, Path(json_file), image_root, classes, ids)


def _load_again(json_file: str, image_root: str, name: str) -> list[dict]:
    if problem := next(_image_problems(read_annotations(json_file)["images"], None), None):
        raise GNDetError(f"{json_file} was changed since the run: {problem}.")
    return load_coco_json(json_file, image_root, name)


def _register(
    name: str,
    load: Callable[[], list[dict]],
    json_file: Path,
    image_root: Path | str,
    classes: list[str],
    ids: list[int],
) -> None:
    """Register with all of the metadata that detectron2's evaluator reads, so that it need not be loaded first."""
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
    """The JSON as it is: {"images": rows, "annotations": rows, "categories": rows, ...}.

    Raises:
        GNDetError: no such file, no JSON, or one of these lists is missing.
    """
    try:
        data = json.loads(Path(json_file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GNDetError(f"The annotation file {json_file} is not there.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise GNDetError(f"The annotation file {json_file} cannot be read as JSON: {error}.") from None
    for key in ("images", "annotations", "categories"):
        rows = data.get(key) if isinstance(data, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise GNDetError(f"{json_file} is not in COCO's format: it has no list {key!r} of objects.")
    return data


def _problems(data: dict, image_root: Path | None) -> Iterator[str]:
    """What would be trained or evaluated wrongly, as parts of a sentence."""
    yield from _category_problems(data["categories"])
    yield from _image_problems(data["images"], image_root)
    images = {_key(row.get("id")): row for row in data["images"]}
    categories = {_key(row.get("id")) for row in data["categories"]}
    masks = [row for row in data["annotations"] if row.get("segmentation")]
    for number, row in enumerate(data["annotations"]):
        where = f"annotation {row.get('id', f'number {number}')}"
        image = images.get(_key(row.get("image_id")))
        if image is None:
            yield f"{where} is for image_id {row.get('image_id')}, which is not among the images"
            continue
        if _key(row.get("category_id")) not in categories:
            yield f"{where} has category_id {row.get('category_id')}, which is not among the categories"
        if problem := _box_problem(row.get("bbox"), image):
            yield f"{where} {problem}"
        if masks and (problem := _mask_problem(row.get("segmentation"), image)):
            yield f"{where} {problem}"


def _key(value: object) -> object:
    """An id that can be looked up, whatever the JSON holds there."""
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
    seen = set()
    for row in rows:
        number, name = row.get("id"), row.get("file_name")
        if _key(number) is None:
            yield f"image {name} has no id"
        elif number in seen:
            yield f"two images have the id {number}"
        seen.add(_key(number))
        if not all(isinstance(row.get(key), int) and row[key] > 0 for key in ("height", "width")):
            yield f"image {number} has no height and width in pixels"
        if not isinstance(name, str) or not name:
            yield f"image {number} has no file_name"
        elif Path(name).is_absolute() or ".." in Path(name).parts or "://" in name:
            yield f"the file_name {name!r} of image {number} leads out of {image_root or 'the image folder'}"
        elif image_root and (problem := _file_problem(image_root / name, row)):
            yield f"{image_root / name} {problem}"


def _file_problem(path: Path, row: dict) -> str | None:
    """From the header alone, so that a large data set is checked in seconds."""
    if not path.is_file():
        return "is not there"
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
            size = image.size[::-1] if orientation >= 5 else image.size
            if image.mode in ("F", "I") or image.mode.startswith("I;16"):
                return "has more than 8 bits a channel, which detectron2 clips at 255: save it with 8"
            if image.format == "TIFF" and orientation > 1:
                return "is a TIFF with an EXIF orientation, which detectron2 applies twice: save it turned"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"cannot be read as an image ({type(error).__name__})"
    if size != (row.get("width"), row.get("height")):  # detectron2 turns an image as its EXIF data say
        return f"has {size[0]} x {size[1]} pixels, and not {row.get('width')} x {row.get('height')}"
    return None


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )


def _box_problem(box: Any, image: dict) -> str | None:
    if not _numbers(box) or len(box) != 4:
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
            return f"has a run-length mask that is not of its image's size {size}"
        return None
    if not isinstance(mask, list) or not mask:
        return "has no segmentation, while others have one"
    if not all(_numbers(polygon) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in mask):
        return "has a polygon that is not a list [x1, y1, x2, y2, ...] of at least 3 points"
    return None


def _clean(data: dict) -> dict:
    """Fill in place what the COCO API takes for granted, and say what the data set holds."""
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
        logger.info(f"Making the sample data set of shapes in {root}.")
    json_file, images = shapes.generate(root)[split]
    return load_coco_json(str(json_file), str(images), f"shapes_{split}")


def _register_shapes() -> None:
    classes, root = list(shapes.CLASSES), dataset_root() / "shapes"
    for split in ("train", "val"):
        ids = list(range(1, len(classes) + 1))
        load = functools.partial(_load_shapes, split)
        _register(f"shapes_{split}", load, root / f"{split}.json", root / split, classes, ids)


_register_shapes()
