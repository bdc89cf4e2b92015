"""Check annotation files in COCO format and register them as datasets of detectron2.

Importing this module registers the generated datasets ``shapes_train`` and ``shapes_val``; their files
are generated at first use.
"""

import contextlib
import functools
import gc
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.utils import comm

from ..errors import GNDetError
from ..files import replacing
from . import shapes
from .cleaning import Options, clean
from .find_files import is_below
from .image_files import file_problems, read_size
from .paths import check_file_names
from .rules import Action, Problems

logger = logging.getLogger(__name__)


def dataset_root() -> Path:
    """Return the folder of detectron2's built-in datasets: ``$DETECTRON2_DATASETS``, by default ``./datasets``."""
    return Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))


def register_coco_json(
    name: str, json_file: str | Path, image_root: str | Path, clean_file: str | Path, masks: bool = True
) -> dict:
    """Check a dataset in COCO format and register it under ``name``.

    detectron2 and the COCO API require fields that real files often lack, and misread values of another type.
    A clean copy of the JSON is written (see :func:`gn_det.data.cleaning.clean`), and the dataset is read from
    the copy. What was repaired in it is logged as warnings.

    Args:
        json_file: the annotations.
        image_root: the folder that the file names of the images are relative to.
        clean_file: the path of the copy.
        masks: whether masks are used. Otherwise, faulty masks are left out, and missing ones are accepted.

    Returns:
        A dict with

        - "classes": list of class names, ordered by category id
        - "images": number of images
        - "objects": number of objects, without crowd regions
        - "crowds": number of crowd regions
        - "masks": bool, whether any object has a mask
        - "rle": bool, whether any of the masks is run-length encoded

    Raises:
        GNDetError: a file or folder is missing, or the JSON has problems. The error has an example of each
            kind of problem, and the number of the others.
    """
    data = read_annotations(json_file)
    if not Path(image_root).is_dir():
        raise GNDetError(f"The image folder {image_root} for {json_file} does not exist.")
    return _check_and_register(name, json_file, data, Options(Path(image_root), masks), Path(clean_file))


def register_annotations(name: str, json_file: str | Path, clean_file: str | Path) -> dict:
    """Register a dataset without image files, to evaluate given detections.

    Args, return value and errors are those of :func:`register_coco_json`.
    """
    return _check_and_register(name, json_file, read_annotations(json_file), Options(), Path(clean_file))


def _check_and_register(name: str, json_file: str | Path, data: dict, options: Options, clean_file: Path) -> dict:
    problems = check_annotations(data, options)
    if problems.refused():
        raise GNDetError(f"{json_file} has {describe_refused(json_file, problems)}")
    for problem in problems.values() if comm.is_main_process() else ():
        if problem.action is Action.READ:
            logger.warning(f"{json_file}: {problem.sentence()}: {problem.remedy}.")
    save_annotations(clean_file, data)
    facts = describe(data)
    image_root = options.image_root or ""
    load = functools.partial(load_coco_json, str(clean_file), str(image_root), name)
    ids = sorted(row["id"] for row in data["categories"])
    _register(name, load, clean_file, image_root, facts["classes"], ids)
    return facts


def check_annotations(data: dict, options: Options) -> Problems:
    """Check and repair annotations in place, and check their image files.

    Args:
        data: what :func:`read_annotations` returned.
        options: how to check; without an image folder, no files are checked.

    Returns:
        the problems, see :func:`gn_det.data.cleaning.clean`.
    """
    problems = clean(data, options, read_size)
    for name, problem in file_problems(data["images"], options.image_root) if options.image_root else ():
        kind = re.sub(r"\d+", "N", " ".join(problem.split()[:3]))
        example = f"{options.image_root}/{name} {problem}"
        problems.add(f"image file: {kind}", Action.HAND, "correct the file or the JSON", example)
    return problems


def describe_refused(json_file: str | Path, problems: Problems, fixed: bool = False) -> str:
    """Return the problems because of which data are refused, and what to do, as the end of a sentence.

    Args:
        fixed: whether this is about those that remain after ``--fix``.
    """
    refused = [problem for problem in problems.refused() if problem.action is Action.HAND or not fixed]
    count = sum(problem.count for problem in refused)
    kinds = f" of {len(refused)} kinds" if len(refused) > 1 else ""
    listed = "; ".join(problem.sentence() for problem in refused)
    by_hand = sum(problem.action is Action.HAND for problem in refused)
    if fixed:
        todo = "; correct them by hand"
    elif not by_hand:
        todo = f"; gn-det check {json_file} --fix NEW.json writes a repaired copy"
    else:
        todo = f"; gn-det check {json_file} --fix NEW.json repairs the others" if by_hand < len(refused) else ""
    return f"{count:,} problem{'s' * (count > 1)}{kinds}: {listed}{todo}."


def describe(data: dict) -> dict:
    """Return the facts on clean annotations that :func:`register_coco_json` returns."""
    objects = [row for row in data["annotations"] if not row["iscrowd"]]
    return {
        "classes": [row["name"] for row in sorted(data["categories"], key=lambda row: row["id"])],
        "images": len(data["images"]),
        "objects": len(objects),
        "crowds": len(data["annotations"]) - len(objects),
        "masks": any("segmentation" in row for row in objects),
        "rle": any(isinstance(row.get("segmentation"), dict) for row in objects),
    }


def save_annotations(path: str | Path, data: dict) -> Path:
    """Write annotations as JSON atomically, row by row, so that little memory is needed. Returns the path."""
    path = Path(path)
    with contextlib.suppress(OSError):  # replacing() raises the error
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        for number, (key, value) in enumerate(data.items()):
            file.write(f"{', ' if number else '{'}{json.dumps(key)}: ")
            if isinstance(value, list):
                file.write("[")
                file.writelines(f"{', ' if index else ''}{json.dumps(row)}" for index, row in enumerate(value))
                file.write("]")
            else:
                file.write(json.dumps(value))
        file.write("}\n")
    return path


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
    if problem := next(_image_problems(read_annotations(json_file)["images"]), None):
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

    The file may be in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Returns:
        The content of the JSON, a dict with at least the lists of dicts "images" and "categories". The list
        "annotations" may be missing or null.

    Raises:
        GNDetError: the file does not exist, is not JSON, or lacks one of these lists.
    """
    try:
        with _without_garbage_collection():
            data = json.loads(Path(json_file).read_bytes())
    except FileNotFoundError:
        raise GNDetError(f"The annotation file {json_file} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise GNDetError(f"The annotation file {json_file} cannot be read as JSON: {error}.") from None
    if format_ := next((name for name, test in _OTHER_FORMATS.items() if test(data)), None):
        raise GNDetError(f"{json_file} is {format_}, and not in COCO format: export the annotations in COCO format.")
    for key in ("images", "annotations", "categories"):
        rows = data.get(key) if isinstance(data, dict) else None
        if key == "annotations" and isinstance(data, dict) and rows is None:
            continue
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise GNDetError(f"{json_file} is not in COCO format: it has no list {key!r} of JSON objects.")
    return data


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Pause the collection of reference cycles, which JSON does not have, and which takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# What else the export of a program may be, and how to recognize it.
_OTHER_FORMATS: dict[str, Callable[[Any], bool]] = {
    "a project of VIA": lambda data: isinstance(data, dict) and "_via_img_metadata" in data,
    "a file of Labelme": lambda data: isinstance(data, dict) and {"shapes", "imagePath"} <= data.keys(),
    "an export of Label Studio's own format": lambda data: (
        isinstance(data, list) and bool(data) and all(isinstance(row, dict) and "data" in row for row in data)
    ),
}


def _valid_id(value: object) -> object:
    """Return ``value`` if it is an int or str, as ids are, else None."""
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _image_problems(rows: list[dict]) -> Iterator[str]:
    """Yield the problems of the images of a clean copy that may have been changed."""
    if not rows:
        yield "it has no images"
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
        elif not is_below(name):
            yield f"the file_name {name!r} of image {number} points outside the image folder"


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
