"""What a report shows of detections beside the truth: tables, drawings and pictures of one analysis."""

import importlib.util

import numpy as np

from . import tables
from .analysis import IOU, Analysis
from .cases import choose
from .figures import Drawing, Line, curves, precision_recall, sizes
from .source import Source

_LINES = 6  # classes up to which each has a curve of its own
_GROUPS = {
    "best": ("Best images", "The highest F1 of all images; among equals, those with most objects found."),
    "worst": ("Worst images", "The lowest F1; among equals, those with most mistakes."),
    "false alarms": ("Surest false alarms", "Wrong detections of the highest scores, framed in white; one an image."),
    "misses": ("Largest misses", "Objects that were not found, the largest first, framed in white; one an image."),
}


def detail(source: Source, analysis: Analysis) -> dict:
    """What the template's lower part is given."""
    outcome = analysis.outcome
    best = _best_score(analysis)
    groups, lost = _pictures(source, analysis)
    return {
        "kind": outcome.kind,
        "kinds": list(analysis.scores),
        "objects": len(outcome.objects),
        "found": int(outcome.found.sum()),
        "alarms": int((outcome.wrong & outcome.shown).sum()),
        "right": int((outcome.right & outcome.shown).sum()),
        "best": best,
        "classes": tables.class_rows(analysis),
        "curves": _curves(analysis, best),
        "confusion": tables.confusion(analysis),
        "pairs": tables.confused_pairs(analysis),
        "errors": tables.errors(analysis),
        "costliest": max(cost for scores in analysis.scores.values() for cost, _ in scores.errors.values()),
        "sizes": _sizes(analysis),
        "size_rows": tables.size_rows(analysis),
        "groups": groups,
        "lost": lost,
    }


def _curves(analysis: Analysis, best: dict | None) -> list[Drawing]:
    """Precision over recall, mean over classes; over the score; and of each class, where these are few."""
    classes = [index for index, ap in enumerate(analysis.scores[analysis.outcome.kind].class_ap) if ap is not None]
    if not classes:
        return []
    means, each = [], []
    recall = np.arange(101.0)
    for kind, scores in analysis.scores.items():
        mean = scores.precision[:, :, classes].mean(2)
        lines = [Line(f"IoU {iou}", recall, row) for iou, row in zip(("0.50", "0.75"), mean, strict=True)]
        alt = f"Precision over recall, {kind}, mean over classes: AP50 {mean[0].mean():.1f}, AP75 {mean[1].mean():.1f}."
        means.append(precision_recall(f"{kind}: mean over classes", lines, alt))
        lines = [Line(analysis.classes[index], recall, scores.precision[0, :, index]) for index in classes]
        alt = ", ".join(f"{line.label} {line.y.mean():.1f}" for line in lines[:_LINES])
        if 1 < len(lines) <= _LINES:
            each.append(
                precision_recall(f"{kind}: each class, IoU 0.50", lines, f"Precision over recall; AP50: {alt}.")
            )
    return means + _thresholds(analysis, best) + each


def _ranked(analysis: Analysis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores from high to low, and precision and recall in percent of the detections of at least that score."""
    outcome = analysis.outcome
    counted = np.flatnonzero(outcome.right | outcome.wrong)
    order = counted[np.argsort(-outcome.score[counted], kind="stable")]
    right = np.cumsum(outcome.right[order])
    precision = 100 * right / np.arange(1, len(order) + 1)
    last = np.r_[outcome.score[order][1:] != outcome.score[order][:-1], True][: len(order)]  # of equal scores
    return outcome.score[order][last], precision[last], 100 * right[last] / max(len(outcome.objects), 1)


def _best_score(analysis: Analysis) -> dict | None:
    """{score, f1, precision, recall} in percent where F1 is highest; None where nothing is right."""
    score, precision, recall = _ranked(analysis)
    if not recall.any():
        return None
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    top = int(f1.argmax())
    rows = {"score": score, "f1": f1, "precision": precision, "recall": recall}
    return {name: float(row[top]) for name, row in rows.items()}


def _thresholds(analysis: Analysis, best: dict | None) -> list[Drawing]:
    """Precision, recall and F1 over the score from which on detections count."""
    if best is None:
        return []
    score, precision, recall = _ranked(analysis)
    grid = np.linspace(0, 1, 201)
    place = np.searchsorted(-score, -grid, side="right") - 1  # the lowest score that is not below
    there = place >= 0
    values = [np.where(there, row[np.maximum(place, 0)], np.nan) for row in (precision, recall)]
    f1 = 2 * values[0] * values[1] / np.maximum(values[0] + values[1], 1e-9)
    rows = {"precision": values[0], "recall": values[1], "F1": f1}
    lines = [Line(name, grid, row) for name, row in rows.items()]
    alt = f"Precision, recall and F1 over the least score; F1 is highest, {best['f1']:.0f} %, at {best['score']:.2f}."
    title = f"{analysis.outcome.kind}: which score to ask for"
    return [curves(title, lines, "least score that counts", f"percent at IoU {IOU}", alt=alt, top=102)]


def _sizes(analysis: Analysis) -> list[Drawing]:
    outcome = analysis.outcome
    if not outcome.objects:
        return []
    alt = f"Histogram of the objects' sizes: {outcome.found.sum()} of {len(outcome.objects)} found."
    note = "Dashed: 32 and 96 pixels, where COCO parts small, medium and large."
    return [sizes("Objects by size", np.sqrt(outcome.area), outcome.found, alt, note)]


def _pictures(source: Source, analysis: Analysis) -> tuple[list[dict], str]:
    """Groups {title, text, pairs: [{name, caption, predicted, truth}]}, and a sentence where some or all are missing."""
    if source.image_root is None or source.truth is None or source.detections is None:
        return [], ""
    if importlib.util.find_spec("cv2") is None:
        return [], "No pictures are drawn: detectron2's drawing needs OpenCV (pip install opencv-python-headless)."
    from .pictures import Album

    rows = sorted(source.truth["categories"], key=lambda row: row["id"])
    classes = {row["id"]: (index, row["name"]) for index, row in enumerate(rows)}
    album = Album(source.truth, source.detections, source.image_root, classes, analysis.outcome.min_score)
    groups, lost = [], 0
    for key, cases in choose(analysis, source.truth, source.detections).items():
        drawn = [(case, album.draw(case)) for case in cases]
        lost += sum(pair is None for _, pair in drawn)
        pairs = [
            {"name": source.truth["images"][case.image]["file_name"], "caption": case.caption, **pair}
            for case, pair in drawn
            if pair
        ]
        groups.append({"title": _GROUPS[key][0], "text": _GROUPS[key][1], "pairs": pairs})
    return groups, f"{lost} images could not be read and are not shown." if lost else ""
