"""Build the tables, figures and pictures of a report from the analysis of the detections."""

import importlib.util

import numpy as np

from . import tables
from .analysis import IOU, Analysis
from .cases import choose_cases
from .figures import Drawing, Line, curves, precision_recall, size_histogram
from .source import Source

_MAX_CLASS_CURVES = 6  # with more classes, there are no curves of single classes
# Key of choose_cases -> heading and explanation.
_GROUPS = {
    "best": ("Best images", "The highest F1. Among images of equal F1, those with the most objects found come first."),
    "worst": ("Worst images", "The lowest F1. Among images of equal F1, those with the most errors come first."),
    "false positives": ("False positives with the highest scores", "Framed in white, at most one per image."),
    "misses": ("Largest missed objects", "Framed in white, at most one per image."),
}


def analysis_details(source: Source, analysis: Analysis) -> dict:
    """Return the variables of the page template that are computed from an analysis.

    Returns:
        a dict with the keys

        - "kind": the shapes that were matched, "box" or "mask".
        - "kinds": the shapes that were evaluated.
        - "objects", "found": number of objects, and how many of them were found.
        - "false_positives", "right": number of shown detections that are wrong or right.
        - "best": see :func:`_best_score`.
        - "classes", "confusion", "pairs", "errors", "size_rows": tables, see ``tables.py``.
        - "max_cost": the largest AP50 that a type of error costs.
        - "curves", "sizes": figures.
        - "groups", "picture_note": see :func:`_pictures`.
    """
    outcome = analysis.outcome
    best = _best_score(analysis)
    groups, picture_note = _pictures(source, analysis)
    return {
        "kind": outcome.kind,
        "kinds": list(analysis.scores),
        "objects": len(outcome.objects),
        "found": int(outcome.found.sum()),
        "false_positives": int((outcome.wrong & outcome.shown).sum()),
        "right": int((outcome.right & outcome.shown).sum()),
        "best": best,
        "classes": tables.class_rows(analysis),
        "curves": _curves(analysis, best),
        "confusion": tables.confusion_matrix(analysis),
        "pairs": tables.confused_pairs(analysis),
        "errors": tables.error_rows(analysis),
        "max_cost": max(cost for scores in analysis.scores.values() for cost, _ in scores.errors.values()),
        "sizes": _sizes(analysis),
        "size_rows": tables.size_rows(analysis),
        "groups": groups,
        "picture_note": picture_note,
    }


def _curves(analysis: Analysis, best: dict | None) -> list[Drawing]:
    """Draw precision over recall, and precision and recall over the minimum score."""
    classes = [index for index, ap in enumerate(analysis.scores[analysis.outcome.kind].class_ap) if ap is not None]
    if not classes:
        return []
    means, single = [], []
    recall = np.arange(101.0)
    for kind, scores in analysis.scores.items():
        mean = scores.precision[:, :, classes].mean(2)
        lines = [Line(f"IoU {iou}", recall, row) for iou, row in zip(("0.50", "0.75"), mean, strict=True)]
        alt = f"Precision over recall, {kind}, mean over classes: AP50 {mean[0].mean():.1f}, AP75 {mean[1].mean():.1f}."
        means.append(precision_recall(f"{kind}: mean over classes", lines, alt))
        lines = [Line(analysis.classes[index], recall, scores.precision[0, :, index]) for index in classes]
        if 1 < len(lines) <= _MAX_CLASS_CURVES:
            alt = ", ".join(f"{line.label} {line.y.mean():.1f}" for line in lines)
            single.append(
                precision_recall(f"{kind}: each class, IoU 0.50", lines, f"Precision over recall; AP50: {alt}.")
            )
    return means + _thresholds(analysis, best) + single


def _ranked(analysis: Analysis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct scores in descending order, and precision and recall at each score.

    Precision and recall are in percent, over the detections of at least that score.
    """
    outcome = analysis.outcome
    counted = np.flatnonzero(outcome.right | outcome.wrong)
    order = counted[np.argsort(-outcome.score[counted], kind="stable")]
    right = np.cumsum(outcome.right[order])
    precision = 100 * right / np.arange(1, len(order) + 1)
    # No threshold separates detections of equal score: use the values after the last of them.
    last = np.r_[outcome.score[order][1:] != outcome.score[order][:-1], True][: len(order)]
    return outcome.score[order][last], precision[last], 100 * right[last] / max(len(outcome.objects), 1)


def _best_score(analysis: Analysis) -> dict | None:
    """Return the minimum score with the highest F1, with F1, precision and recall in percent.

    Returns:
        a dict with "score", "f1", "precision" and "recall"; None if no detection is right.
    """
    score, precision, recall = _ranked(analysis)
    if not recall.any():
        return None
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    top = int(f1.argmax())
    rows = {"score": score, "f1": f1, "precision": precision, "recall": recall}
    return {name: float(row[top]) for name, row in rows.items()}


def _thresholds(analysis: Analysis, best: dict | None) -> list[Drawing]:
    """Draw precision, recall and F1 over the minimum score of the detections."""
    if best is None:
        return []
    score, precision, recall = _ranked(analysis)
    grid = np.linspace(0, 1, 201)
    index = np.searchsorted(-score, -grid, side="right") - 1  # of the lowest score that passes the minimum
    valid = index >= 0
    values = [np.where(valid, row[np.maximum(index, 0)], np.nan) for row in (precision, recall)]
    f1 = 2 * values[0] * values[1] / np.maximum(values[0] + values[1], 1e-9)
    rows = {"precision": values[0], "recall": values[1], "F1": f1}
    lines = [Line(name, grid, row) for name, row in rows.items()]
    alt = (
        f"Precision, recall and F1 over the minimum score; the highest F1 is {best['f1']:.0f} % at {best['score']:.2f}."
    )
    title = f"{analysis.outcome.kind}: choice of the minimum score"
    return [curves(title, lines, "minimum score", f"percent at IoU {IOU}", alt=alt, top=102)]


def _sizes(analysis: Analysis) -> list[Drawing]:
    outcome = analysis.outcome
    if not outcome.objects:
        return []
    alt = f"Histogram of the sizes of the objects: {outcome.found.sum()} of {len(outcome.objects)} found."
    note = "Dashed lines: 32 and 96 pixels, COCO's limits between small, medium and large."
    return [size_histogram("Objects by size", np.sqrt(outcome.area), outcome.found, alt, note)]


def _pictures(source: Source, analysis: Analysis) -> tuple[list[dict], str]:
    """Draw the cases of :func:`choose_cases`.

    Returns:
        a dict for each kind of case, and a sentence if pictures are missing, otherwise "". The
        dict has the keys

        - "title", "text": heading and explanation.
        - "pairs": a dict per case with the "name" of the image, the "caption", and the pictures
          "predicted" and "truth" as data URIs.
    """

    if source.image_root is None or source.truth is None or source.detections is None:
        return [], ""
    if importlib.util.find_spec("cv2") is None:
        return [], "No pictures were drawn, because OpenCV is not installed (pip install opencv-python-headless)."
    from .pictures import Album

    rows = sorted(source.truth["categories"], key=lambda row: row["id"])
    classes = {row["id"]: (index, row["name"]) for index, row in enumerate(rows)}
    album = Album(source.truth, source.detections, source.image_root, classes, analysis.outcome.min_score)
    groups, unreadable = [], 0
    for key, cases in choose_cases(analysis, source.truth, source.detections).items():
        drawn = [(case, album.draw(case)) for case in cases]
        unreadable += sum(pair is None for _, pair in drawn)
        pairs = [
            {"name": source.truth["images"][case.image]["file_name"], "caption": case.caption, **pair}
            for case, pair in drawn
            if pair
        ]
        groups.append({"title": _GROUPS[key][0], "text": _GROUPS[key][1], "pairs": pairs})
    return groups, f"{unreadable} images could not be read and are not shown." if unreadable else ""
