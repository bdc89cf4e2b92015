"""Select the images, false positives and missed objects that a report shows, with captions."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from .analysis import IOU, Analysis

_MIN_OVERLAP = 0.1  # IoU below which a detection and an object are unrelated, as in TIDE


@dataclass
class Case:
    """An image, or a close-up of it, shown with its predictions and with its ground truth.

    Attributes:
        image: index in ``truth["images"]``.
        caption: explanation of the case.
        row: the detection or the annotation that a close-up shows; None for the whole image.
    """

    image: int
    caption: str
    row: dict | None = None


def choose_cases(analysis: Analysis, truth: dict, rows: list[dict], number: int = 4) -> dict[str, list[Case]]:
    """Select at most ``number`` cases of each kind.

    Args:
        analysis: of these annotations and detections.
        truth: what :func:`gn_det.data.coco.read_annotations` returns.
        rows: detections in COCO's result format.

    Returns:
        a dict with the keys, in the order of the page

        - "best": the images with the highest F1.
        - "worst": the images with the lowest F1.
        - "false positives": the wrong detections with the highest scores, at most one per image.
        - "misses": the largest objects that were not found, at most one per image.
    """
    explainer = _Explainer(analysis, truth, rows)
    best, worst = _best_and_worst(analysis, number)
    outcome = analysis.outcome
    wrong = np.flatnonzero(outcome.wrong & outcome.shown)
    wrong = wrong[np.argsort(-outcome.score[wrong], kind="stable")]
    missed = np.flatnonzero(~outcome.found)
    missed = missed[np.argsort(-outcome.area[missed], kind="stable")]
    return {
        "best": best,
        "worst": worst,
        "false positives": [
            explainer.false_positive(d) for d in _one_per_image(wrong, outcome.detection_image, number)
        ],
        "misses": [explainer.miss(m) for m in _one_per_image(missed, outcome.object_image, number)],
    }


def _one_per_image(indices: Iterable[int], images: np.ndarray, number: int) -> list[int]:
    """Return the first index of each image, for at most ``number`` images."""
    chosen: dict[int, int] = {}
    for index in indices:
        chosen.setdefault(int(images[index]), int(index))
        if len(chosen) == number:
            break
    return list(chosen.values())


def _best_and_worst(analysis: Analysis, number: int) -> tuple[list[Case], list[Case]]:
    """Return the images with the highest and the lowest F1 of the shown detections.

    Among images of equal F1, those with the most objects found, or the most errors, come first.
    """
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
        count = f"{wrong[index]} false positive" + ("" if wrong[index] == 1 else "s")
        return Case(int(index), f"{right[index]} of {objects[index]} objects found, {count}")

    return [case(index) for index in best], [case(index) for index in worst]


class _Explainer:
    """Explains false positives and missed objects by what overlaps them in the image."""

    def __init__(self, analysis: Analysis, truth: dict, rows: list[dict]):
        self.analysis, self.outcome, self.truth, self.rows = analysis, analysis.outcome, truth, rows

    def false_positive(self, index: int) -> Case:
        """Return the case of a wrong detection."""
        outcome, row = self.outcome, self.rows[index]
        objects = np.flatnonzero(outcome.object_image == outcome.detection_image[index])
        ious = self._ious([row], [outcome.objects[m] for m in objects], int(outcome.detection_image[index]))[0]
        name = self.analysis.classes[outcome.detection_class[index]]
        same_class = outcome.object_class[objects] == outcome.detection_class[index]
        reason = self._why_false_positive(ious, same_class, objects)
        return Case(int(outcome.detection_image[index]), f"{name}, score {outcome.score[index]:.2f}: {reason}", row)

    def _why_false_positive(self, ious: np.ndarray, same_class: np.ndarray, objects: np.ndarray) -> str:
        """Explain a wrong detection.

        Args:
            ious: IoU of the detection with each object of the image.
            same_class: whether the object has the predicted class.
            objects: indices of the objects.
        """
        same, other = ious * same_class, ious * ~same_class
        if same.max(initial=0) >= IOU:
            return "another detection already found this object"
        if other.max(initial=0) >= IOU:
            return f"the ground truth is {self.analysis.classes[self.outcome.object_class[objects[other.argmax()]]]}"
        if same.max(initial=0) >= _MIN_OVERLAP:
            return f"inaccurate, IoU {same.max():.2f} with the nearest {self.outcome.kind}"
        if other.max(initial=0) >= _MIN_OVERLAP:
            return "inaccurate, and the nearest object is of another class"
        return "no object there"

    def miss(self, index: int) -> Case:
        """Return the case of an object that was not found."""
        outcome, row = self.outcome, self.outcome.objects[index]
        detections = np.flatnonzero((outcome.detection_image == outcome.object_image[index]) & outcome.shown)
        ious = self._ious([self.rows[d] for d in detections], [row], int(outcome.object_image[index]))[:, 0]
        same_class = outcome.detection_class[detections] == outcome.object_class[index]
        name, size = self.analysis.classes[outcome.object_class[index]], outcome.area[index] ** 0.5
        reason = self._why_missed(index, ious, same_class, detections)
        return Case(int(outcome.object_image[index]), f"{name}, {size:.0f} px: {reason}", row)

    def _why_missed(self, index: int, ious: np.ndarray, same_class: np.ndarray, detections: np.ndarray) -> str:
        """Explain why an object was not found.

        Args:
            index: index of the object.
            ious: IoU of each shown detection of the image with the object.
            same_class: whether the detection has the class of the object.
            detections: indices of the detections.
        """
        same, other = ious * same_class, ious * ~same_class
        if other.max(initial=0) >= IOU:
            wrong = detections[other.argmax()]
            name = self.analysis.classes[self.outcome.detection_class[wrong]]
            return f"detected as {name} (score {self.outcome.score[wrong]:.2f})"
        if self.outcome.match_score[index] > 0:
            return f"detected, but with score {self.outcome.match_score[index]:.2f} only"
        if same.max(initial=0) >= _MIN_OVERLAP:
            return f"the best detection has IoU {same.max():.2f} only"
        return "no detection there"

    def _ious(self, rows: list[dict], objects: list[dict], image: int) -> np.ndarray:
        """Return the IoU of each detection with each object, (len(rows), len(objects))."""
        if not rows or not objects:
            return np.zeros((len(rows), len(objects)))
        if self.outcome.kind == "box":
            boxes = [np.array([row["bbox"] for row in part], dtype=float) for part in (rows, objects)]
            return coco_mask.iou(*boxes, [0] * len(objects))
        size = self.truth["images"][image]["height"], self.truth["images"][image]["width"]
        masks = [[to_compressed_rle(row["segmentation"], *size) for row in part] for part in (rows, objects)]
        return coco_mask.iou(*masks, [0] * len(objects))


def to_compressed_rle(segmentation: dict | list, height: int, width: int) -> dict:
    """Convert a COCO segmentation to the compressed run lengths of pycocotools.

    Args:
        segmentation: polygons, or run lengths with the counts as text or as numbers.
    """
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    counts = segmentation["counts"]
    return coco_mask.frPyObjects(segmentation, height, width) if isinstance(counts, list) else segmentation
