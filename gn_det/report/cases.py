"""Which images, false alarms and misses a report shows, and in words why each was one."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from .analysis import IOU, Analysis

_TOUCH = 0.1  # IoU below which two have nothing to do with each other, as in TIDE


@dataclass
class Case:
    """One pair of pictures: an image, or a close-up of it, with the sentence under it."""

    image: int  # index in truth["images"]
    caption: str
    row: dict | None = None  # the detection or object in question, of the rows that were given


def choose(analysis: Analysis, truth: dict, rows: list[dict], number: int = 4) -> dict[str, list[Case]]:
    """At most ``number`` cases of each kind, in the order of the page.

    Args:
        rows: the detections that ``analysis`` was made of.

    Returns:
        {"best": images, "worst": images, "false alarms": the surest wrong detections, "misses": the largest objects
        that were not found}; the last two at most one an image.
    """
    near = _Near(analysis, truth, rows)
    best, worst = _images(analysis, number)
    outcome = analysis.outcome
    alarms = np.flatnonzero(outcome.wrong & outcome.shown)
    alarms = alarms[np.argsort(-outcome.score[alarms], kind="stable")]
    misses = np.flatnonzero(~outcome.found)
    misses = misses[np.argsort(-outcome.area[misses], kind="stable")]
    return {
        "best": best,
        "worst": worst,
        "false alarms": [near.alarm(d) for d in _one_an_image(alarms, outcome.detection_image, number)],
        "misses": [near.miss(m) for m in _one_an_image(misses, outcome.object_image, number)],
    }


def _one_an_image(indices: Iterable[int], images: np.ndarray, number: int) -> list[int]:
    chosen: dict[int, int] = {}
    for index in indices:
        chosen.setdefault(int(images[index]), int(index))
        if len(chosen) == number:
            break
    return list(chosen.values())


def _images(analysis: Analysis, number: int) -> tuple[list[Case], list[Case]]:
    """By F1 of the shown detections; among equals those with most right, or most wrong, come first."""
    outcome = analysis.outcome
    count = 1 + max([-1, *outcome.object_image.tolist(), *outcome.detection_image.tolist()])
    right, wrong = (
        np.bincount(outcome.detection_image[outcome.shown & which], minlength=count)
        for which in (outcome.right, outcome.wrong)
    )
    objects = np.bincount(outcome.object_image, minlength=count)
    missed = objects - right
    f1 = 2 * right / np.maximum(2 * right + wrong + missed, 1)
    order = np.lexsort((-right, -f1))
    best = [index for index in order if right[index]][:number]
    order = np.lexsort((-(wrong + missed), f1))
    worst = [index for index in order if wrong[index] + missed[index] and index not in best][:number]

    def case(index: int) -> Case:
        alarms = f"{wrong[index]} false alarm" + ("" if wrong[index] == 1 else "s")
        return Case(int(index), f"{right[index]} of {objects[index]} objects found, {alarms}")

    return [case(index) for index in best], [case(index) for index in worst]


class _Near:
    """Looks up what lies where a false alarm or a missed object is."""

    def __init__(self, analysis: Analysis, truth: dict, rows: list[dict]):
        self.analysis, self.outcome, self.truth, self.rows = analysis, analysis.outcome, truth, rows

    def alarm(self, index: int) -> Case:
        outcome, row = self.outcome, self.rows[index]
        there = np.flatnonzero(outcome.object_image == outcome.detection_image[index])
        ious = self._ious([row], [outcome.objects[m] for m in there], int(outcome.detection_image[index]))[0]
        name = self.analysis.classes[outcome.detection_class[index]]
        same = outcome.object_class[there] == outcome.detection_class[index]
        caption = f"{name}, score {outcome.score[index]:.2f}: {self._why_alarm(ious, same, there)}"
        return Case(int(outcome.detection_image[index]), caption, row)

    def _why_alarm(self, ious: np.ndarray, same: np.ndarray, there: np.ndarray) -> str:
        own, other = (ious * which for which in (same, ~same))
        if own.max(initial=0) >= IOU:
            return "found a second time"
        if other.max(initial=0) >= IOU:
            return f"the truth there is {self.analysis.classes[self.outcome.object_class[there[other.argmax()]]]}"
        if own.max(initial=0) >= _TOUCH:
            return f"badly placed, IoU {own.max():.2f} with the nearest {self.outcome.kind}"
        return (
            "no object of any class there" if other.max(initial=0) < _TOUCH else "of another object, and badly placed"
        )

    def miss(self, index: int) -> Case:
        outcome, row = self.outcome, self.outcome.objects[index]
        there = np.flatnonzero((outcome.detection_image == outcome.object_image[index]) & outcome.shown)
        ious = self._ious([self.rows[d] for d in there], [row], int(outcome.object_image[index]))[:, 0]
        same = outcome.detection_class[there] == outcome.object_class[index]
        name, size = self.analysis.classes[outcome.object_class[index]], outcome.area[index] ** 0.5
        caption = f"{name}, {size:.0f} px: {self._why_miss(index, ious, same, there)}"
        return Case(int(outcome.object_image[index]), caption, row)

    def _why_miss(self, index: int, ious: np.ndarray, same: np.ndarray, there: np.ndarray) -> str:
        own, other = (ious * which for which in (same, ~same))
        if other.max(initial=0) >= IOU:
            taker = there[other.argmax()]
            name = self.analysis.classes[self.outcome.detection_class[taker]]
            return f"taken for {name} ({self.outcome.score[taker]:.2f})"
        if self.outcome.found_by[index] > 0:
            return f"found, but with score {self.outcome.found_by[index]:.2f} only"
        if own.max(initial=0) >= _TOUCH:
            return f"a detection overlaps it with IoU {own.max():.2f} only"
        return "nothing found there"

    def _ious(self, rows: list[dict], objects: list[dict], image: int) -> np.ndarray:
        """(len(rows), len(objects))"""
        if not rows or not objects:
            return np.zeros((len(rows), len(objects)))
        if self.outcome.kind == "box":
            boxes = [np.array([row["bbox"] for row in part], dtype=float) for part in (rows, objects)]
            return coco_mask.iou(*boxes, [0] * len(objects))
        size = self.truth["images"][image]["height"], self.truth["images"][image]["width"]
        masks = [[run_length(row["segmentation"], *size) for row in part] for part in (rows, objects)]
        return coco_mask.iou(*masks, [0] * len(objects))


def run_length(segmentation: dict | list, height: int, width: int) -> dict:
    """A COCO segmentation (polygons, counts as text or numbers) as the COCO API's compressed run lengths."""
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    counts = segmentation["counts"]
    return coco_mask.frPyObjects(segmentation, height, width) if isinstance(counts, list) else segmentation
