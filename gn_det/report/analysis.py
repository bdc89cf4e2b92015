"""Detections against the truth, by hotcoco: AP and curves, confusions, error types, and what was found and missed.

N detections, M objects (crowds left out), K classes in the order of their category ids. "Shown" are the detections of at
least ``min_score``. Precision, recall and AP are in percent, IoU from 0 to 1.
"""

import contextlib
import io
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import hotcoco
import numpy as np

from ..errors import GNDetError
from ..evaluation.evaluator import check_ids
from ..evaluation.fast_coco import may_run

KINDS = {"box": "bbox", "mask": "segm"}
_KEYS = {"box": "bbox", "mask": "segmentation"}
IOU = 0.5  # at which a detection counts as right, but for AP
ERRORS = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")  # TIDE's


@dataclass
class Scores:
    """What is told of one kind, box or mask, over detections of all scores."""

    metrics: dict[str, float | None]  # AP, AP50, ... AR100; None where there is nothing to find
    class_ap: list[float | None]  # (K)
    precision: np.ndarray  # (2, 101, K) at IoU 0.50 and 0.75 and recall 0, 1, ... 100; NaN for a class without objects
    errors: dict[str, tuple[float, int]]  # of ERRORS, the AP50 that it costs and how many there are


@dataclass
class Outcome:
    """What became of each detection and object at IoU 0.5, and the images they are in (indices of ``truth["images"]``)."""

    kind: str  # box or mask
    min_score: float
    score: np.ndarray  # (N)
    right: np.ndarray  # (N) bool
    wrong: np.ndarray  # (N) bool; neither is what lies in a crowd, or beyond the 100 of an image
    detection_image: np.ndarray  # (N)
    detection_class: np.ndarray  # (N)
    objects: list[dict]  # (M) rows of the truth
    area: np.ndarray  # (M) of the objects, in square pixels
    object_image: np.ndarray  # (M)
    object_class: np.ndarray  # (M)
    found_by: np.ndarray  # (M) the score of the detection that found it; NaN where none did
    confusion: np.ndarray  # (K + 1, K + 1) counts of the shown; rows truth, columns predicted, last background

    @property
    def shown(self) -> np.ndarray:
        """(N) bool"""
        return self.score >= self.min_score

    @property
    def found(self) -> np.ndarray:
        """(M) bool"""
        return self.found_by >= self.min_score


@dataclass
class Analysis:
    """Everything that the page tells of one data set."""

    classes: list[str]
    scores: dict[str, Scores]  # by kind
    outcome: Outcome


def analyse(
    truth: dict, rows: list[dict], min_score: float, *, masks: bool = True, where: str | Path = "the detections"
) -> Analysis:
    """Evaluate detections in COCO's result format.

    Args:
        truth: as :func:`gn_det.data.coco.read_annotations` gives it.
        masks: whether the model has masks; where detections have none, they are judged by their boxes alone.
        where: the file of the detections, for sentences.

    Raises:
        GNDetError: a detection is for another data set, or has no valid box or mask.
    """
    if not may_run():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            return fresh.submit(analyse, truth, rows, min_score, masks=masks, where=where).result()
    kinds = [kind for kind in KINDS if _has(truth["annotations"], kind) and (_has(rows, kind) or not rows)]
    kinds = [kind for kind in kinds if masks or kind == "box"] or ["box"]
    try:
        data = _Data(truth, rows, where)
        evaluations = {kind: data.evaluate(kind) for kind in kinds}
        scores = {kind: _scores(evaluation) for kind, evaluation in evaluations.items()}
        outcome = _outcome(data, kinds[-1], evaluations[kinds[-1]], min_score)
    except GNDetError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise GNDetError(f"{where} cannot be evaluated with the annotations there ({problem}).") from None
    return Analysis(data.names, scores, outcome)


def _area(row: dict) -> float:
    return row.get("area", row["bbox"][2] * row["bbox"][3])


def _has(rows: Sequence[dict], kind: str) -> bool:
    return any(_KEYS[kind] in row for row in rows)


class _Data:
    """Truth and detections with images and classes numbered from 0, as hotcoco takes no other ids than numbers."""

    def __init__(self, truth: dict, rows: list[dict], where: str | Path):
        categories = sorted(truth["categories"], key=lambda row: row["id"])
        self.names, self.rows = [row["name"] for row in categories], rows
        self.images = {row["id"]: index for index, row in enumerate(truth["images"])}
        # The COCO API ranks equal scores by the order of the image ids.
        self.ranks = {i: n for n, i in enumerate(sorted(self.images, key=lambda i: (isinstance(i, str), i)))}
        self.classes = {row["id"]: index for index, row in enumerate(categories)}
        check_ids(rows, self.images, self.classes, where)
        self.annotations = truth["annotations"]
        self.truth = hotcoco.COCO(
            {
                "images": [
                    {"id": self.ranks[row["id"]], "height": row["height"], "width": row["width"]}
                    for row in truth["images"]
                ],
                "categories": [{"id": index, "name": str(index)} for index in range(len(categories))],
                "annotations": [self._annotation(number, row) for number, row in enumerate(self.annotations, start=1)],
            }
        )

    def _annotation(self, number: int, row: dict) -> dict:
        shape = {key: row[key] for key in _KEYS.values() if row.get(key)}
        return {"id": number, **self._place(row), **shape, "iscrowd": int(row.get("iscrowd", 0)), "area": _area(row)}

    def _place(self, row: dict) -> dict:
        return {"image_id": self.ranks[row["image_id"]], "category_id": self.classes[row["category_id"]]}

    def detections(self, kind: str, which: Iterable[int] | None = None) -> hotcoco.COCO:
        """Of one kind alone: with a box beside it the COCO API would take a mask's size from the box."""
        key, rows = _KEYS[kind], self.rows if which is None else [self.rows[index] for index in which]
        return self.truth.load_res([{**self._place(row), "score": row["score"], key: row[key]} for row in rows])

    def evaluate(self, kind: str) -> hotcoco.COCOeval:
        evaluation = hotcoco.COCOeval(self.truth, self.detections(kind), KINDS[kind])
        evaluation.evaluate()
        evaluation.accumulate()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            evaluation.summarize()
        return evaluation


def _scores(evaluation: hotcoco.COCOeval) -> Scores:
    told: dict = evaluation.eval or {}
    precision = 100 * np.asarray(told["precision"])[:, :, :, 0, -1]  # of all sizes, 100 detections an image
    precision[precision < 0] = np.nan  # the COCO API's -1: no objects
    per_class = precision.transpose(2, 0, 1).reshape(precision.shape[2], -1)
    errors = evaluation.tide_errors(pos_thr=IOU)
    metrics = evaluation.results()["metrics"]
    return Scores(
        metrics={name: 100 * value if value >= 0 else None for name, value in metrics.items()},
        class_ap=[None if np.isnan(row).any() else float(row.mean()) for row in per_class],
        precision=precision[[0, 5]],
        errors={name: (100 * errors["delta_ap"][name], errors["counts"][name]) for name in ERRORS},
    )


def _outcome(data: _Data, kind: str, evaluation: hotcoco.COCOeval, min_score: float) -> Outcome:
    """hotcoco numbers detections from 1 in their order, as the objects here."""
    told = evaluation.image_diagnostics(iou_thr=IOU)
    status = [told["dt_status"].get(number) for number in range(1, len(data.rows) + 1)]
    right, wrong = (np.array([s == name for s in status], dtype=bool) for name in ("tp", "fp"))
    score = np.array([row["score"] for row in data.rows], dtype=float)
    objects = [number for number, row in enumerate(data.annotations, start=1) if not row.get("iscrowd")]
    matches = [told["gt_match"].get(number) for number in objects]
    rows = [data.annotations[number - 1] for number in objects]
    counted = np.flatnonzero((score >= min_score) & (right | wrong))  # else detections in crowds were false alarms
    shown = hotcoco.COCOeval(data.truth, data.detections(kind, counted), KINDS[kind])
    return Outcome(
        kind=kind,
        min_score=min_score,
        score=score,
        right=right,
        wrong=wrong,
        detection_image=np.array([data.images[row["image_id"]] for row in data.rows], dtype=int),
        detection_class=np.array([data.classes[row["category_id"]] for row in data.rows], dtype=int),
        objects=rows,
        area=np.array([_area(row) for row in rows], dtype=float),
        object_image=np.array([data.images[row["image_id"]] for row in rows], dtype=int),
        object_class=np.array([data.classes[row["category_id"]] for row in rows], dtype=int),
        found_by=np.array([score[match - 1] if match else np.nan for match in matches], dtype=float),
        confusion=np.asarray(shown.confusion_matrix(iou_thr=IOU)["matrix"]).astype(int),
    )
