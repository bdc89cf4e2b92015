"""Draw the training curves in metrics.json, and compute the training time."""

import numpy as np

from ..drawing.figures import PALETTE
from .figures import Drawing, Line, curves

_KINDS = {"bbox": "box AP", "segm": "mask AP"}


def training_curves(rows: list[dict]) -> list[Drawing]:
    """Draw the total loss, its terms, the learning rate, and AP if it was evaluated more than once.

    Args:
        rows: what :func:`gn_det.evaluation.run_folder.read_metrics` returns.
    """
    drawn = []
    total = _line(rows, "total_loss", "total loss")
    if len(total.x):
        steps = int(total.x[-1]) + 1
        alt = f"Total loss over {steps} iterations: {total.y[0]:.3g} at the start, {total.y[-1]:.3g} at the end."
        drawn.append(curves("Total loss", [total], "iteration", "loss", alt=alt))
    names = sorted({key for row in rows for key in row if key.startswith("loss")})
    parts = sorted((_line(rows, name, name) for name in names), key=lambda line: -line.y[-1:].sum())[: len(PALETTE)]
    if parts := [line for line in parts if len(line.x)]:
        ends = ", ".join(f"{line.label} {line.y[-1]:.3g}" for line in parts)
        drawn.append(curves("Loss terms", parts, "iteration", "loss", alt=f"Loss terms; at the end {ends}."))
    rate = _line(rows, "lr", "learning rate")
    if len(rate.x):
        alt = f"Learning rate: at most {rate.y.max():.3g}, {rate.y[-1]:.3g} at the end."
        drawn.append(curves("Learning rate", [rate], "iteration", "learning rate", alt=alt))
    results = [_line(rows, key, label) for key, label in _result_keys(rows).items()][: len(PALETTE)]
    if any(len(line.x) > 1 for line in results):
        ends = ", ".join(f"{line.label} {line.y[-1]:.1f}" for line in results if len(line.x))
        alt = f"AP during training; at the end {ends}."
        drawn.append(curves("AP during training", results, "iteration", "AP (%)", alt=alt, dots=True))
    return drawn


def _line(rows: list[dict], key: str, label: str) -> Line:
    """Return the finite values of a metric over the iterations."""
    points = [(row["iteration"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
    return Line(label, *np.array([p for p in points if np.isfinite(p[1])], dtype=float).reshape(-1, 2).T)


def _result_keys(rows: list[dict]) -> dict[str, str]:
    """Return the keys of AP with their labels.

    A key is ``bbox/AP``, or ``shapes_val/bbox/AP`` if the run has several test sets.
    """
    keys = sorted({key for row in rows for key in row if key.endswith(tuple(f"{kind}/AP" for kind in _KINDS))})
    labels = {}
    for key in keys:
        *prefix, kind, _ = key.split("/")
        labels[key] = " ".join([*prefix, _KINDS.get(kind, kind)])
    return labels


def seconds(rows: list[dict]) -> float | None:
    """Return the total time of all iterations in seconds, or None if it is unknown.

    Each row has the time of one iteration, which is used for all iterations since the previous row.
    """
    total, last = 0.0, -1
    for row in rows:
        if isinstance(row.get("time"), int | float) and np.isfinite(row["time"]):
            total += row["time"] * (row["iteration"] - last)
            last = row["iteration"]
    return total or None
