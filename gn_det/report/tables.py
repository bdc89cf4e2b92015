"""Build the rows of the tables in a report. AP is in percent."""

from typing import Any

import numpy as np

from .analysis import ERRORS, Analysis

_MAX_CLASSES = 12  # classes in the confusion matrix; of more classes, those with the most confusions are shown
_MAX_PAIRS = 15  # pairs of confused classes
_MEANING = {
    "Cls": ("wrong class", "IoU of 0.5 or more with an object of another class"),
    "Loc": ("inaccurate", "IoU between 0.1 and 0.5 with an object of the predicted class"),
    "Both": ("wrong class and inaccurate", "IoU between 0.1 and 0.5 with an object of another class"),
    "Dupe": ("duplicate", "the object was already found by a detection with a higher score"),
    "Bkg": ("background", "IoU below 0.1 with every object"),
    "Miss": ("missed object", "an object that was not found and that none of the errors above explains"),
}
_SIZES = (("small", 0, 32), ("medium", 32, 96), ("large", 96, np.inf))  # COCO's limits on the square root of the area


def class_rows(analysis: Analysis) -> list[dict]:
    """Return the results of each class, sorted by AP in descending order.

    Returns:
        a dict per class with the keys

        - "name": name of the class.
        - "objects", "found": number of objects, and how many of them were found.
        - "ap": AP of "box" and "mask"; None for a class without objects.
        - "false_positives": number of shown detections that are wrong.
    """
    outcome, number = analysis.outcome, len(analysis.classes)
    objects = np.bincount(outcome.object_class, minlength=number)
    found = np.bincount(outcome.object_class[outcome.found], minlength=number)
    false_positives = np.bincount(outcome.detection_class[outcome.wrong & outcome.shown], minlength=number)
    rows = [
        {
            "name": name,
            "objects": int(objects[index]),
            "ap": {kind: scores.class_ap[index] for kind, scores in analysis.scores.items()},
            "found": int(found[index]),
            "false_positives": int(false_positives[index]),
        }
        for index, name in enumerate(analysis.classes)
    ]
    return _sorted_by_ap(rows, outcome.kind)


def recorded_class_rows(record: dict) -> list[dict]:
    """Return the rows of :func:`class_rows` from a record, with the keys "name" and "ap" only."""
    kinds = [kind for kind in ("box", "mask") if record[kind]]
    names = [key.removeprefix("AP-") for key in record[kinds[-1]] if key.startswith("AP-")] if kinds else []
    rows = [{"name": name, "ap": {kind: record[kind].get(f"AP-{name}") for kind in kinds}} for name in names]
    return _sorted_by_ap(rows, kinds[-1]) if kinds else []


def _sorted_by_ap(rows: list[dict], kind: str) -> list[dict]:
    return sorted(rows, key=lambda row: -1.0 if row["ap"][kind] is None else row["ap"][kind], reverse=True)


def confusion_matrix(analysis: Analysis) -> dict:
    """Return the confusion matrix; if there are many classes, the least confused ones are merged.

    Returns:
        a dict with the keys

        - "names": names of the columns; the last is "background".
        - "rows": (name, counts, share of each count in its row from 0 to 1) of each row.
        - "cut": whether classes were merged into "other classes".
    """
    matrix, names = analysis.outcome.confusion, list(analysis.classes)
    cut = len(names) > _MAX_CLASSES
    if cut:
        confusions = _confusions(analysis)
        order = np.argsort(-(confusions.sum(0) + confusions.sum(1)), kind="stable")
        keep = np.sort(order[: _MAX_CLASSES - 1])
        rest = np.setdiff1d(np.arange(len(names)), keep)
        groups: list[Any] = [*([index] for index in keep), rest, [len(names)]]
        matrix = np.array([[matrix[np.ix_(row, column)].sum() for column in groups] for row in groups])
        names = [*(names[index] for index in keep), "other classes"]
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    names = [*names, "background"]
    rows = list(zip(names, matrix.tolist(), shares.tolist(), strict=True))
    return {"names": names, "rows": rows, "cut": cut}


def _confusions(analysis: Analysis) -> np.ndarray:
    """Return the confusion matrix (K, K) without background, and with zeros on its diagonal."""
    return analysis.outcome.confusion[:-1, :-1] * (1 - np.eye(len(analysis.classes), dtype=int))


def confused_pairs(analysis: Analysis) -> list[dict]:
    """Return the pairs of classes that are confused most often.

    Returns:
        a dict per pair with the keys

        - "truth", "predicted": names of the classes.
        - "count": number of confusions.
        - "share": percentage of the objects of the class "truth".
    """
    confusions, names = _confusions(analysis), analysis.classes
    totals = analysis.outcome.confusion.sum(1)
    order = np.argsort(-confusions, axis=None, kind="stable")[:_MAX_PAIRS]
    pairs = [divmod(int(index), len(names)) for index in order]
    return [
        {
            "truth": names[t],
            "predicted": names[p],
            "count": int(confusions[t, p]),
            "share": 100 * confusions[t, p] / totals[t],
        }
        for t, p in pairs
        if confusions[t, p]
    ]


def error_rows(analysis: Analysis) -> list[dict]:
    """Return the types of errors, in the order of TIDE.

    Returns:
        a dict per type with the keys

        - "name", "meaning": texts.
        - "costs": for "box" and "mask", the AP50 that these errors cost, and their number.
    """
    return [
        {
            "name": _MEANING[error][0],
            "meaning": _MEANING[error][1],
            "costs": {kind: scores.errors[error] for kind, scores in analysis.scores.items()},
        }
        for error in ERRORS
    ]


def size_rows(analysis: Analysis) -> list[dict]:
    """Return how many small, medium and large objects were found.

    Returns:
        a dict per size with the keys

        - "name", "range": texts.
        - "objects", "found": number of objects, and how many of them were found.
        - "share": percentage of the objects that were found; None if there are none.
    """
    side, found = np.sqrt(analysis.outcome.area), analysis.outcome.found
    rows = []
    for name, low, high in _SIZES:
        inside = (side >= low) & (side < high)
        limits = f"{low} to {high} px" if np.isfinite(high) else f"{low} px or more"
        objects, hits = int(inside.sum()), int(found[inside].sum())
        share = 100 * hits / objects if objects else None
        rows.append({"name": name, "range": limits, "objects": objects, "found": hits, "share": share})
    return rows
