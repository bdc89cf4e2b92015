"""Time COCO evaluation by pycocotools and by hotcoco on synthetic detections.

hotcoco is called through gn_det.evaluation.fast_coco. The images have 480 x 640 pixels. In shapes, N is
the number of objects or detections.
"""

import contextlib
import copy
import gc
import io
import statistics
import time

import numpy as np
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..errors import GNDetError
from ..evaluation.fast_coco import FastCOCOeval

_SIZE = np.array([640, 480])  # width, height
_CLASSES = 80
_OBJECTS, _DETECTIONS = 7.2, 36  # per image
_CROWD_FRACTION = 0.012  # fraction of the objects that are crowds
_NEAR_FRACTION = 0.4  # fraction of the detections that lie near an object; the others lie anywhere


def synthetic_coco(images: int, masks: bool, seed: int = 0) -> tuple[dict, list[dict]]:
    """Return a ground truth in COCO's format, and detections in COCO's result format.

    The same arguments always give the same data.

    Args:
        masks: whether objects and detections have masks (polygons for objects, run-length encodings for
            crowds and detections).
    """
    rng = np.random.default_rng(seed)
    object_count, near_count = int(images * _OBJECTS), int(images * _DETECTIONS * _NEAR_FRACTION)
    objects = _random_boxes(rng, object_count, images)
    detections = _random_boxes(rng, images * _DETECTIONS, images)
    target = rng.integers(object_count, size=near_count)
    for key in ("image", "category"):
        detections[key][:near_count] = objects[key][target]
    box = objects["box"][target]
    detections["box"][:near_count] = _clip(box + rng.normal(0, 0.06, box.shape) * np.tile(box[:, 2:], 2))
    far_count = len(detections["image"]) - near_count
    scores = np.concatenate([rng.beta(3, 2, near_count), rng.beta(1, 6, far_count)])
    crowds = rng.random(object_count) < _CROWD_FRACTION
    annotations = [
        {**row, "id": n, "iscrowd": int(crowd), "area": 0.8 * row["bbox"][2] * row["bbox"][3]}
        for n, (row, crowd) in enumerate(zip(_rows(objects), crowds, strict=True), start=1)
    ]
    rows = [{**row, "score": float(s)} for row, s in zip(_rows(detections), scores.astype(np.float32), strict=True)]
    if masks:
        for row in annotations:
            row["segmentation"] = _encode_mask(row["bbox"]) if row["iscrowd"] else [_outline(row["bbox"])]
        for row in rows:
            row["segmentation"] = _encode_mask(row["bbox"])
    ground_truth = {
        "images": [{"id": i, "width": int(_SIZE[0]), "height": int(_SIZE[1])} for i in range(images)],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(_CLASSES)],
        "annotations": annotations,
    }
    return ground_truth, rows


def _random_boxes(rng: np.random.Generator, count: int, images: int) -> dict[str, np.ndarray]:
    """Return boxes with side lengths similar to COCO's.

    Returns:
        {"image": (N,), "category": (N,), "box": (N, 4) as x, y, width, height}.
    """
    sides = np.exp(rng.normal(4.2, 0.9, (count, 2))).clip(4, 400)
    boxes = _clip(np.concatenate([rng.random((count, 2)) * (_SIZE - sides), sides], axis=1))
    return {
        "image": rng.integers(images, size=count),
        "category": rng.integers(_CLASSES, size=count),
        "box": boxes,
    }


def _clip(boxes: np.ndarray) -> np.ndarray:
    """Clip (N, 4) boxes x, y, width, height to the image, with sides of at least 4 pixels."""
    corner = boxes[:, :2].clip(0, _SIZE - 4)
    return np.concatenate([corner, boxes[:, 2:].clip(4, _SIZE - corner)], axis=1)


def _rows(columns: dict[str, np.ndarray]) -> list[dict]:
    boxes = columns["box"].astype(np.float32).tolist()
    values = zip(columns["image"].tolist(), columns["category"].tolist(), boxes, strict=True)
    return [{"image_id": image, "category_id": category, "bbox": box} for image, category, box in values]


def _outline(box: list[float]) -> list[float]:
    """Return a polygon of 24 points with five bulges that fills the box, as [x0, y0, x1, y1, ...]."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    radius = 0.45 + 0.05 * np.cos(5 * angle + box[0])
    xy = np.stack([0.5 + radius * np.cos(angle), 0.5 + radius * np.sin(angle)], axis=1)
    return (box[:2] + xy * box[2:]).reshape(-1).tolist()


def _encode_mask(box: list[float]) -> dict:
    width, height = _SIZE.tolist()
    (rle,) = mask_util.frPyObjects([_outline(box)], height, width)
    return {**rle, "counts": rle["counts"].decode()}


def measure(images: int = 5000, mask_images: int = 500, repeats: int = 3) -> dict[str, dict]:
    """Time ``evaluate`` and ``accumulate`` of pycocotools and hotcoco in turn.

    hotcoco's time includes loading the dataset.

    Args:
        images: number of images for the comparison on boxes; the default is the size of val2017.
        mask_images: number of images for the comparison on masks.
        repeats: number of timed pairs.

    Returns:
        {"boxes": dict, "masks": dict}, each with the keys:
            "images", "objects", "detections": number in the dataset.
            "pycocotools", "hotcoco": median of the seconds.
            "ratio": median of the pairs' ratios, pycocotools / hotcoco.
            "spread": (minimum, maximum) of the ratios.
            "equal": whether all precisions, recalls and scores are equal to the last bit.

    Raises:
        GNDetError: an argument is below 1.
    """
    if min(images, mask_images, repeats) < 1:
        raise GNDetError(
            f"images is {images}, mask_images is {mask_images} and repeats is {repeats}; they must be 1 or more."
        )
    return {"boxes": _compare(images, "bbox", repeats), "masks": _compare(mask_images, "segm", repeats)}


def _compare(images: int, task: str, repeats: int) -> dict:
    ground_truth, rows = synthetic_coco(images, masks=task == "segm")
    same_categories = {i: i for i in range(_CLASSES)}
    pairs, equal = [], True
    for _ in range(repeats):
        stock, stock_seconds = _time_evaluation(_pycocotools(ground_truth, rows, task))
        fast, fast_seconds = _time_evaluation(FastCOCOeval(_index(ground_truth), rows, task, same_categories))
        pairs.append((stock_seconds, fast_seconds))
        equal &= all(np.array_equal(stock.eval[name], fast.eval[name]) for name in ("precision", "recall", "scores"))
    ratios = [stock_seconds / fast_seconds for stock_seconds, fast_seconds in pairs]
    return {
        "images": images,
        "objects": len(ground_truth["annotations"]),
        "detections": len(rows),
        "pycocotools": statistics.median(stock_seconds for stock_seconds, _ in pairs),
        "hotcoco": statistics.median(fast_seconds for _, fast_seconds in pairs),
        "ratio": statistics.median(ratios),
        "spread": (min(ratios), max(ratios)),
        "equal": equal,
    }


def _index(ground_truth: dict) -> COCO:
    """Return pycocotools' index of a copy of the ground truth, because pycocotools modifies the data."""
    api = COCO()
    api.dataset = copy.deepcopy(ground_truth)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        api.createIndex()
    return api


def _pycocotools(ground_truth: dict, rows: list[dict], task: str) -> COCOeval:
    keys = ("image_id", "category_id", "score", {"bbox": "bbox", "segm": "segmentation"}[task])
    api = _index(ground_truth)
    with contextlib.redirect_stdout(io.StringIO()):
        return COCOeval(api, api.loadRes([{key: row[key] for key in keys} for row in rows]), task)


def _time_evaluation(evaluation: COCOeval) -> tuple[COCOeval, float]:
    gc.collect()
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation, time.perf_counter() - start
