"""Analyze detections with hotcoco: AP, precision and recall, confusion matrix, errors, and matches.

Shapes: N detections, M objects (without crowds), K classes in the order of their category ids.
Detections with a score of at least ``min_score`` are called "shown". Precision, recall and AP are
in percent, IoU is from 0 to 1.
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
from ..evaluation.detections import check_detections
from ..evaluation.hotcoco_data import SHAPE_KEYS, HotcocoData, claim_hotcoco
from ..metrics import RECORD_KEYS

KINDS = {kind: task for task, kind in RECORD_KEYS.items()}  # "box" or "mask" -> task
IOU = 0.5  # lowest IoU of a match, except for AP
ERRORS = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")  # types of errors in TIDE


@dataclass
class Scores:
    """Metrics of boxes or of masks, without a score threshold.

    Attributes:
        metrics: value of "AP", "AP50", ... "AR100"; None if no object is of that size.
        class_ap: (K) AP of each class; None for a class without objects.
        precision: (2, 101, K) at IoU 0.50 and 0.75 and recall 0, 1, ... 100; NaN for a class
            without objects.
        errors: for each name in ``ERRORS``, the AP50 that these errors cost, and their number.
    """

    metrics: dict[str, float | None]
    class_ap: list[float | None]
    precision: np.ndarray
    errors: dict[str, tuple[float, int]]


@dataclass
class Outcome:
    """Detections matched with objects at IoU 0.5.

    Attributes:
        kind: the shapes that were matched, "box" or "mask".
        min_score: lowest score of a shown detection.
        score: (N) score of each detection.
        right: (N) bool, whether the detection matches an object of its class.
        wrong: (N) bool, whether the detection matches no object. A detection in a crowd, or after
            the first 100 per image, is neither right nor wrong.
        detection_image, detection_class: (N) indices of the image and of the class.
        objects: (M) annotations of the objects.
        area: (M) in square pixels.
        object_image, object_class: (M) indices of the image and of the class.
        match_score: (M) score of the detection that matches the object; NaN if none does.
        confusion: (K + 1, K + 1) counts of shown detections. Rows are true classes, columns are
            predicted classes; the last row and column are background.

    Indices of images are those in ``truth["images"]``.
    """

    kind: str
    min_score: float
    score: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    detection_image: np.ndarray
    detection_class: np.ndarray
    objects: list[dict]
    area: np.ndarray
    object_image: np.ndarray
    object_class: np.ndarray
    match_score: np.ndarray
    confusion: np.ndarray

    @property
    def shown(self) -> np.ndarray:
        """(N) bool, whether the score of the detection is at least ``min_score``."""
        return self.score >= self.min_score

    @property
    def found(self) -> np.ndarray:
        """(M) bool, whether a shown detection matches the object."""
        return self.match_score >= self.min_score


@dataclass
class Analysis:
    """The analysis of the detections on one dataset.

    Attributes:
        classes: (K) names.
        scores: metrics of "box" and, if masks were evaluated, of "mask".
        outcome: matches of masks if masks were evaluated, otherwise of boxes.
    """

    classes: list[str]
    scores: dict[str, Scores]
    outcome: Outcome


def analyze_detections(
    truth: dict, rows: list[dict], min_score: float, *, masks: bool = True, where: str | Path = "the detections"
) -> Analysis:
    """Evaluate detections and match them with the ground truth.

    Args:
        truth: what :func:`gn_det.data.coco.read_annotations` returns.
        rows: detections in COCO's result format.
        min_score: lowest score of a shown detection.
        masks: whether to evaluate masks. Without masks in the annotations and detections, only
            boxes are evaluated.
        where: the file of the detections, for error messages.

    Raises:
        GNDetError: a detection is of another dataset, or has no valid box or mask.
    """
    if not claim_hotcoco():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as new_process:
            return new_process.submit(analyze_detections, truth, rows, min_score, masks=masks, where=where).result()
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
        raise GNDetError(
            f"{where} cannot be evaluated with the annotations of the dataset ({problem}); check both files."
        ) from None
    return Analysis(data.names, scores, outcome)


def _area(row: dict) -> float:
    return row.get("area", row["bbox"][2] * row["bbox"][3])


def _has(rows: Sequence[dict], kind: str) -> bool:
    return any(SHAPE_KEYS[KINDS[kind]] in row for row in rows)


class _Data:
    """Annotations and detections of a dataset.

    Attributes:
        names: (K) names of the classes.
        rows: (N) detections.
        images: {image id: index in ``truth["images"]``}.
        classes: {category id: class index}.
        annotations: all annotations, with crowds.
    """

    def __init__(self, truth: dict, rows: list[dict], where: str | Path):
        categories = sorted(truth["categories"], key=lambda row: row["id"])
        self.names = [row["name"] for row in categories]
        self.images = {row["id"]: index for index, row in enumerate(truth["images"])}
        self.classes = {row["id"]: index for index, row in enumerate(categories)}
        images = {row["id"]: row for row in truth["images"]}
        self.rows = check_detections(rows, images, self.classes, where)
        self.annotations = truth["annotations"]
        complete = [{**row, "iscrowd": row.get("iscrowd", 0), "area": _area(row)} for row in self.annotations]
        self._hotcoco = HotcocoData(truth["images"], self.classes, complete)

    def evaluate(self, kind: str) -> hotcoco.COCOeval:
        """Return the evaluation of all detections."""
        evaluation = self._hotcoco.build_evaluation(KINDS[kind], self.rows)
        evaluation.evaluate()
        evaluation.accumulate()
        with contextlib.redirect_stdout(io.StringIO()):  # summarize() prints
            evaluation.summarize()
        return evaluation

    def confusion(self, kind: str, indices: Iterable[int]) -> np.ndarray:
        """Return the confusion matrix (K + 1, K + 1) of the detections with these indices."""
        evaluation = self._hotcoco.build_evaluation(KINDS[kind], [self.rows[index] for index in indices])
        return np.asarray(evaluation.confusion_matrix(iou_thr=IOU)["matrix"]).astype(int)


def _scores(evaluation: hotcoco.COCOeval) -> Scores:
    arrays: dict = evaluation.eval or {}
    precision = 100 * np.asarray(arrays["precision"])[:, :, :, 0, -1]  # of all sizes, 100 detections per image

    precision[precision < 0] = np.nan  # -1 stands for a class without objects
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
    # hotcoco numbers detections and annotations from 1, each in the order in which they were given.
    diagnostics = evaluation.image_diagnostics(iou_thr=IOU)
    status = [diagnostics["dt_status"].get(number) for number in range(1, len(data.rows) + 1)]
    right, wrong = (np.array([s == name for s in status], dtype=bool) for name in ("tp", "fp"))
    score = np.array([row["score"] for row in data.rows], dtype=float)
    objects = [number for number, row in enumerate(data.annotations, start=1) if not row.get("iscrowd")]
    matches = [diagnostics["gt_match"].get(number) for number in objects]
    rows = [data.annotations[number - 1] for number in objects]
    # Without the detections in crowds, which the confusion matrix would count as false positives.
    counted = np.flatnonzero((score >= min_score) & (right | wrong))
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
        match_score=np.array([score[match - 1] if match else np.nan for match in matches], dtype=float),
        confusion=data.confusion(kind, counted),
    )
