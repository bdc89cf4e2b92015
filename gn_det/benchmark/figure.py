"""Draw a benchmark: seconds by part for each candidate, and the speedup of GN + ReLU for each shape."""

from pathlib import Path

from ..drawing.figures import BLUE, GRAY, GREEN, ORANGE, PURPLE, SKY, VERMILION, YELLOW, save_figure
from .candidates import candidate_name
from .phases import PARTS

# With more parts than colors, the colors repeat with hatching.
_COLORS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, GRAY)
_DIRECTION = "forward + backward"


def draw(record: dict, path: str | Path) -> None:
    """Draw the stages inference, training and ops, as far as the record has them.

    Args:
        record: see :func:`gn_det.benchmark.run.benchmark`.
        path: a file whose suffix chooses the format, such as .png or .svg.
    """
    from matplotlib.figure import Figure  # imported here because it takes a second

    panels = _panels(record["stages"])
    figure = Figure(figsize=(6.5 * max(len(panels), 1), 5), layout="constrained")
    for axes, (title, draw_panel, data) in zip(
        figure.subplots(1, max(len(panels), 1), squeeze=False)[0], panels, strict=False
    ):
        draw_panel(axes, data)
        axes.set_title(title)
        axes.grid(axis="x", alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    if not panels:
        figure.text(0.5, 0.5, "No stage with a figure was measured.", ha="center")
    save_figure(figure, path)


def _panels(stages: dict) -> list[tuple]:
    """Return (title, function that draws the panel, its data) for each panel."""
    panels: list[tuple] = []
    if "parts" in stages:
        seconds = _seconds_by(stages["parts"], "parts")
        data = {part: _column(seconds, part) for part in PARTS if part in _segments(seconds)}
        panels.append(("Inference", _draw_stacked_bars, data))
    elif "inference" in stages:
        rows = stages["inference"]["candidates"]
        data = {"whole model": {name: row["seconds"] for name, row in rows.items()}}
        panels.append(("Inference", _draw_stacked_bars, data))
    if "training" in stages:
        seconds = _seconds_by(stages["training"], "steps")
        data = {step: _column(seconds, step) for step in _segments(seconds)}
        panels.append(("Training step", _draw_stacked_bars, data))
    if "ops" in stages:
        panels.append((f"GN + ReLU, {_DIRECTION}", _draw_speedups, stages["ops"]["rows"]))
    return panels


def _seconds_by(stage: dict, key: str) -> dict[str, dict[str, float]]:
    """Return {candidate: {segment of the time: seconds}} for the key "parts" or "steps"."""
    candidates = stage["candidates"].items()
    return {name: {segment: row["seconds"] for segment, row in c[key].items()} for name, c in candidates}


def _segments(seconds: dict[str, dict]) -> list[str]:
    return list(dict.fromkeys(segment for by_segment in seconds.values() for segment in by_segment))


def _column(seconds: dict[str, dict], segment: str) -> dict[str, float]:
    return {name: by_segment.get(segment, 0.0) for name, by_segment in seconds.items()}


def _draw_stacked_bars(axes, data: dict[str, dict[str, float]]) -> None:
    """Draw one bar per candidate from {segment: {candidate: seconds}}."""
    left = dict.fromkeys(next(iter(data.values())), 0.0)
    for number, (segment, values) in enumerate(data.items()):
        style = {"color": _COLORS[number % len(_COLORS)], "hatch": "//" if number >= len(_COLORS) else None}
        lefts = list(left.values())
        axes.barh(list(values), list(values.values()), left=lefts, label=segment, edgecolor="white", **style)
        left = {name: left[name] + value for name, value in values.items()}
    stock = left.get(candidate_name("GN", "stock"))
    for name, total in left.items():
        speedup = f" ({stock / total:.2f}x)" if stock else ""
        position = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{total:.3g} s{speedup}", (total, name), **position)
    axes.set_xlim(0, 1.3 * max(left.values()))
    axes.set_xlabel("seconds (speedup over stock)")
    axes.invert_yaxis()
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.13), ncols=4, frameon=False, fontsize="small")


def _draw_speedups(axes, rows: list[dict]) -> None:
    """Draw one bar per shape and variant with its spread, and a line at 1 for stock."""
    rows = [row for row in rows if row["direction"] == _DIRECTION]
    names, variants = (list(dict.fromkeys(row[key] for row in rows)) for key in ("name", "variant"))
    height = 0.8 / len(variants)
    for number, variant in enumerate(variants):
        chosen = [row["ratio"] for row in rows if row["variant"] == variant]
        values = [row["ratio"] for row in chosen]
        errors = [[r["ratio"] - r["spread"][0] for r in chosen], [r["spread"][1] - r["ratio"] for r in chosen]]
        places = [place + (number - (len(variants) - 1) / 2) * height for place in range(len(names))]
        style = {"color": _COLORS[number], "error_kw": {"linewidth": 0.8}}
        axes.barh(places, values, height, xerr=errors, label=variant, **style)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("speedup over F.group_norm and F.relu")
    axes.invert_yaxis()
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.13), ncols=3, frameon=False, fontsize="small")
