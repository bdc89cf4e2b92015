"""COCO's metrics on made-up detections, timed in turn: by pycocotools, and by hotcoco through gn_det.evaluation.fast_coco.

N objects or detections, on images of 480 x 640 pixels; of val2017's size by default.
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
_OBJECTS, _DETECTIONS = 7.2, 36  # an image
_CROWDS = 0.012  # of the objects
_NEAR = 0.4  # of the detections lie about an object, the others anywhere


def made_up(images: int, masks: bool, seed: int = 0) -> tuple[dict, list[dict]]:
    """The truth in COCO's format, and detections in its result format, the same at each call.

    Args:
        masks: whether they have masks: polygons, and run lengths of crowds and detections.
    """
    rng = np.random.default_rng(seed)
    number, near = int(images * _OBJECTS), int(images * _DETECTIONS * _NEAR)
    objects = _anywhere(rng, number, images)
    detections = _anywhere(rng, images * _DETECTIONS, images)
    of = rng.integers(number, size=near)
    detections["image"][:near], detections["category"][:near] = objects["image"][of], objects["category"][of]
    box = objects["box"][of]
    detections["box"][:near] = _within(box + rng.normal(0, 0.06, box.shape) * np.tile(box[:, 2:], 2))
    scores = np.concatenate([rng.beta(3, 2, near), rng.beta(1, 6, len(detections["image"]) - near)])
    crowds = rng.random(number) < _CROWDS
    annotations = [
        {**row, "id": n, "iscrowd": int(crowd), "area": 0.8 * row["bbox"][2] * row["bbox"][3]}
        for n, (row, crowd) in enumerate(zip(_rows(objects), crowds, strict=True), start=1)
    ]
    rows = [{**row, "score": float(s)} for row, s in zip(_rows(detections), scores.astype(np.float32), strict=True)]
    if masks:
        for row in annotations:
            row["segmentation"] = _runs(row["bbox"]) if row["iscrowd"] else [_outline(row["bbox"])]
        for row in rows:
            row["segmentation"] = _runs(row["bbox"])
    truth = {
        "images": [{"id": i, "width": int(_SIZE[0]), "height": int(_SIZE[1])} for i in range(images)],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(_CLASSES)],
        "annotations": annotations,
    }
    return truth, rows


def _anywhere(rng: np.random.Generator, number: int, images: int) -> dict[str, np.ndarray]:
    """image (N), category (N) and box (N, 4) x, y, width, height; side lengths about those of COCO."""
    sides = np.exp(rng.normal(4.2, 0.9, (number, 2))).clip(4, 400)
    boxes = _within(np.concatenate([rng.random((number, 2)) * (_SIZE - sides), sides], axis=1))
    return {
        "image": rng.integers(images, size=number),
        "category": rng.integers(_CLASSES, size=number),
        "box": boxes,
    }


def _within(boxes: np.ndarray) -> np.ndarray:
    corner = boxes[:, :2].clip(0, _SIZE - 4)
    return np.concatenate([corner, boxes[:, 2:].clip(4, _SIZE - corner)], axis=1)


def _rows(columns: dict[str, np.ndarray]) -> list[dict]:
    boxes = columns["box"].astype(np.float32).tolist()
    places = zip(columns["image"].tolist(), columns["category"].tolist(), boxes, strict=True)
    return [{"image_id": image, "category_id": category, "bbox": box} for image, category, box in places]


def _outline(box: list[float]) -> list[float]:
    """A polygon of 24 points with five bulges that fills the box."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    radius = 0.45 + 0.05 * np.cos(5 * angle + box[0])
    xy = np.stack([0.5 + radius * np.cos(angle), 0.5 + radius * np.sin(angle)], axis=1)
    return (box[:2] + xy * box[2:]).reshape(-1).tolist()


def _runs(box: list[float]) -> dict:
    width, height = _SIZE.tolist()
    (rle,) = mask_util.frPyObjects([_outline(box)], height, width)
    return {**rle, "counts": rle["counts"].decode()}


def measure(images: int = 5000, mask_images: int = 500, repeats: int = 3) -> dict[str, dict]:
    """Time ``evaluate`` and ``accumulate`` of both in turn; hotcoco's time is with the reading of the data set.

    Returns:
        {"boxes": {...}, "masks": {...}}, each with how many "images", "objects" and "detections" there were, the median
        seconds of "pycocotools" and "hotcoco", "ratio", the median of the pairs' ratios, "spread", the least and the most
        of them, and "equal": whether all precisions, recalls and scores are equal to the last bit.

    Raises:
        GNDetError: a number is below 1.
    """
    if min(images, mask_images, repeats) < 1:
        raise GNDetError(
            f"There is nothing to measure with {min(images, mask_images, repeats)}: take numbers from 1 on."
        )
    return {"boxes": _compare(images, "bbox", repeats), "masks": _compare(mask_images, "segm", repeats)}


def _compare(images: int, task: str, repeats: int) -> dict:
    truth, rows = made_up(images, masks=task == "segm")
    pairs, equal = [], True
    for _ in range(repeats):
        stock, slow = _timed(_pycocotools(truth, rows, task))
        fast, quick = _timed(FastCOCOeval(_api(truth), rows, task, {i: i for i in range(_CLASSES)}))
        pairs.append((slow, quick))
        equal &= all(np.array_equal(stock.eval[name], fast.eval[name]) for name in ("precision", "recall", "scores"))
    ratios = [slow / quick for slow, quick in pairs]
    return {
        "images": images,
        "objects": len(truth["annotations"]),
        "detections": len(rows),
        "pycocotools": statistics.median(slow for slow, _ in pairs),
        "hotcoco": statistics.median(quick for _, quick in pairs),
        "ratio": statistics.median(ratios),
        "spread": (min(ratios), max(ratios)),
        "equal": equal,
    }


def _api(truth: dict) -> COCO:
    """pycocotools' index of a copy, as it writes into the truth."""
    api = COCO()
    api.dataset = copy.deepcopy(truth)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        api.createIndex()
    return api


def _pycocotools(truth: dict, rows: list[dict], task: str) -> COCOeval:
    keys = ("image_id", "category_id", "score", {"bbox": "bbox", "segm": "segmentation"}[task])
    api = _api(truth)
    with contextlib.redirect_stdout(io.StringIO()):
        return COCOeval(api, api.loadRes([{key: row[key] for key in keys} for row in rows]), task)


def _timed(evaluation: COCOeval) -> tuple[COCOeval, float]:
    gc.collect()
    begun = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation, time.perf_counter() - begun
