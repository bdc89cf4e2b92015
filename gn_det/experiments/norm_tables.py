"""Format and draw the results of a norm study: AP by batch size for each norm."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from ..drawing.figures import BLUE, GRAY, GREEN, ORANGE, PURPLE, VERMILION, save_figure
from ..evaluation.comparison import mean_and_spread, metric_values
from ..modeling.norm import NORMS

_COLORS = {"GN": BLUE, "LN": GREEN, "IN": PURPLE, "BN": VERMILION, "SyncBN": ORANGE, "FrozenBN": GRAY}
_MARKERS = {"GN": "o", "LN": "^", "IN": "v", "BN": "s", "SyncBN": "P", "FrozenBN": "D"}
_LABELS = {"FrozenBN": "BN*"}


def _cells(records: Sequence[dict]) -> dict[tuple[str, int], list[dict]]:
    """Group the records of a norm study by norm and batch size, in the order of NORMS."""
    cells = defaultdict(list)
    for record in records:
        cells[record["variant"]["norm"], record["variant"]["batch"]].append(record)
    return dict(sorted(cells.items(), key=lambda item: (NORMS.index(item[0][0]), item[0][1])))


def study_tables(records: Sequence[dict]) -> str:
    """Return Markdown tables of box and mask AP, with a line per norm and a column per batch size.

    Args:
        records: the records that :class:`gn_det.experiments.norm_study.Study` writes.
    """
    cells = _cells(records)
    norms = sorted({norm for norm, _ in cells}, key=NORMS.index)
    batches = sorted({batch for _, batch in cells})
    tables = []
    for kind in ("box", "mask"):
        if not metric_values(records, kind):
            continue
        rows = [
            [_LABELS.get(norm, norm), *(_cell(cells.get((norm, batch), []), kind) for batch in batches)]
            for norm in norms
        ]
        headers = [f"{kind} AP", *(f"batch {batch}" for batch in batches)]
        tables.append(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    return "\n\n".join([*tables, "AP in percent: mean ± standard deviation over the seeds (number of seeds)."])


def _cell(records: Sequence[dict], kind: str) -> str:
    if not records:
        return "-"
    diverged = sum("diverged" in r for r in records)
    if diverged == len(records):
        return f"diverged ({diverged})"
    text = f"{mean_and_spread(metric_values(records, kind))} ({len(records)})"
    return f"{text}, {diverged} diverged" if diverged else text


def draw_study(records: Sequence[dict], path: str | Path) -> None:
    """Draw AP by batch size, with a line per norm through the means and a point per run.

    Args:
        records: the records that :class:`gn_det.experiments.norm_study.Study` writes.
        path: a file whose suffix chooses the format, such as .png or .svg.
    """
    from matplotlib.figure import Figure  # imported here because it takes a second

    kinds = [kind for kind in ("box", "mask") if metric_values(records, kind)]
    figure = Figure(figsize=(4.6 * len(kinds), 4), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        _draw_kind(axes, records, kind)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    save_figure(figure, path)


def _draw_kind(axes, records: Sequence[dict], kind: str) -> None:
    by_norm: dict[str, list] = defaultdict(list)
    for (norm, batch), cell in _cells(records).items():
        by_norm[norm].append((batch, metric_values(cell, kind)))
    for norm, points in by_norm.items():
        style = {"color": _COLORS.get(norm), "marker": _MARKERS.get(norm, "x")}
        batches = [batch for batch, values in points if values]
        means = [statistics.fmean(values) for _, values in points if values]
        axes.plot(batches, means, label=_LABELS.get(norm, norm), markersize=6, **style)
        for batch, values in points:
            axes.scatter([batch] * len(values), values, s=10, alpha=0.6, linewidths=0, zorder=3, **style)
    axes.set_xscale("log", base=2)
    ticks = sorted({r["variant"]["batch"] for r in records})
    axes.set_xticks(ticks, [str(t) for t in ticks])
    top = max(axes.get_ylim()[1], 5.0)  # from 0, and to at least 5 % if no model learned anything
    axes.set_ylim(-0.02 * top, top)
    axes.set(xlabel="images per batch", ylabel=f"{kind} AP (%)", title=f"{kind.capitalize()} AP")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
