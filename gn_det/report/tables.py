"""The tables of a report, as rows for its template. AP in percent."""

from typing import Any

import numpy as np

from .analysis import ERRORS, Analysis

_CLASSES = 12  # of a confusion matrix; of more, those that are confused most
_PAIRS = 15  # of confused classes that are listed
_MEANING = {
    "Cls": ("wrong class", "well placed on an object of another class"),
    "Loc": ("badly placed", "right class, IoU between 0.1 and 0.5"),
    "Both": ("both", "another class, and badly placed"),
    "Dupe": ("found twice", "an object that a surer detection has found already"),
    "Bkg": ("background", "IoU below 0.1 with every object"),
    "Miss": ("missed", "an object that none of these accounts for"),
}
_SIZES = (("small", 0, 32), ("medium", 32, 96), ("large", 96, np.inf))  # COCO's, by the square root of the area


def class_rows(analysis: Analysis) -> list[dict]:
    """{name, objects, ap: {kind: AP or None}, found, alarms} for each class, the best first."""
    outcome, number = analysis.outcome, len(analysis.classes)
    objects = np.bincount(outcome.object_class, minlength=number)
    found = np.bincount(outcome.object_class[outcome.found], minlength=number)
    alarms = np.bincount(outcome.detection_class[outcome.wrong & outcome.shown], minlength=number)
    rows = [
        {
            "name": name,
            "objects": int(objects[index]),
            "ap": {kind: scores.class_ap[index] for kind, scores in analysis.scores.items()},
            "found": int(found[index]),
            "alarms": int(alarms[index]),
        }
        for index, name in enumerate(analysis.classes)
    ]
    return _sorted(rows, outcome.kind)


def recorded_class_rows(record: dict) -> list[dict]:
    """The same of a record alone, without what it does not tell."""
    kinds = [kind for kind in ("box", "mask") if record[kind]]
    names = [key.removeprefix("AP-") for key in record[kinds[-1]] if key.startswith("AP-")] if kinds else []
    rows = [{"name": name, "ap": {kind: record[kind].get(f"AP-{name}") for kind in kinds}} for name in names]
    return _sorted(rows, kinds[-1]) if kinds else []


def _sorted(rows: list[dict], kind: str) -> list[dict]:
    return sorted(rows, key=lambda row: -1.0 if row["ap"][kind] is None else row["ap"][kind], reverse=True)


def confusion(analysis: Analysis) -> dict:
    """The matrix with the most confused classes, the rest summed up as "other classes".

    Returns:
        {"names": heads of the columns, "rows": [(name, counts, shares of the row from 0 to 1)], "cut": whether classes
        were summed up}; the last row and column are background.
    """
    matrix, names = analysis.outcome.confusion, list(analysis.classes)
    cut = len(names) > _CLASSES
    if cut:
        mixed = matrix[:-1, :-1] * (1 - np.eye(len(names), dtype=int))
        mass = mixed.sum(0) + mixed.sum(1)
        keep = np.sort(np.argsort(-mass, kind="stable")[: _CLASSES - 1])
        rest = np.setdiff1d(np.arange(len(names)), keep)
        groups: list[Any] = [*([index] for index in keep), rest, [len(names)]]
        matrix = np.array([[matrix[np.ix_(row, column)].sum() for column in groups] for row in groups])
        names = [*(names[index] for index in keep), "other classes"]
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    heads = [*names, "background"]
    rows = list(zip(heads, matrix.tolist(), shares.tolist(), strict=True))
    return {"names": heads, "rows": rows, "cut": cut}


def confused_pairs(analysis: Analysis) -> list[dict]:
    """{truth, predicted, count, share of the truth's objects} of the pairs of classes that are confused most often."""
    matrix, names = analysis.outcome.confusion, analysis.classes
    totals = matrix.sum(1)
    mixed = matrix[:-1, :-1] * (1 - np.eye(len(names), dtype=int))
    order = np.argsort(-mixed, axis=None, kind="stable")[:_PAIRS]
    pairs = [divmod(int(index), len(names)) for index in order]
    return [
        {"truth": names[t], "predicted": names[p], "count": int(mixed[t, p]), "share": 100 * mixed[t, p] / totals[t]}
        for t, p in pairs
        if mixed[t, p]
    ]


def errors(analysis: Analysis) -> list[dict]:
    """{name, meaning, costs: {kind: (AP50 lost, count)}} of each of TIDE's types, in its order."""
    return [
        {
            "name": _MEANING[error][0],
            "meaning": _MEANING[error][1],
            "costs": {kind: scores.errors[error] for kind, scores in analysis.scores.items()},
        }
        for error in ERRORS
    ]


def size_rows(analysis: Analysis) -> list[dict]:
    """{name, range, objects, found, share} of COCO's three sizes."""
    side, found = np.sqrt(analysis.outcome.area), analysis.outcome.found
    rows = []
    for name, low, high in _SIZES:
        there = (side >= low) & (side < high)
        span = f"{low} to {high} px" if np.isfinite(high) else f"from {low} px"
        objects, hits = int(there.sum()), int(found[there].sum())
        share = 100 * hits / objects if objects else None
        rows.append({"name": name, "range": span, "objects": objects, "found": hits, "share": share})
    return rows
