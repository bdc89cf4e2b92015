"""A benchmark's picture: seconds by part, one bar a side, and the ratio of GN + ReLU by shape."""

from pathlib import Path

from ..drawing.figures import BLUE, GRAY, GREEN, ORANGE, PURPLE, SKY, VERMILION, YELLOW, save_figure
from .sides import side_name
from .timeline import PARTS

_COLORS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, GRAY)  # hatched where they come again
_DIRECTION = "forward + backward"


def draw(record: dict, path: str | Path) -> None:
    """Draw what the record has of inference, training and single operations. A PNG or SVG by the name."""
    from matplotlib.figure import Figure  # it takes a second, which nobody who trains should wait

    panels = _panels(record["stages"])
    figure = Figure(figsize=(6.5 * max(len(panels), 1), 5), layout="constrained")
    for axes, (title, show, data) in zip(
        figure.subplots(1, max(len(panels), 1), squeeze=False)[0], panels, strict=False
    ):
        show(axes, data)
        axes.set_title(title)
        axes.grid(axis="x", alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    if not panels:
        figure.text(0.5, 0.5, "nothing to draw was measured", ha="center")
    save_figure(figure, path)


def _panels(stages: dict) -> list[tuple]:
    panels: list[tuple] = []
    if "parts" in stages:
        sides = {name: _medians(side["parts"]) for name, side in stages["parts"]["sides"].items()}
        panels.append(("Inference", _stacked, {part: _column(sides, part) for part in PARTS if part in _all(sides)}))
    elif "inference" in stages:
        sides = stages["inference"]["sides"]
        panels.append(("Inference", _stacked, {"whole model": {name: row["seconds"] for name, row in sides.items()}}))
    if "training" in stages:
        sides = {name: _medians(side["steps"]) for name, side in stages["training"]["sides"].items()}
        panels.append(("Training step", _stacked, {step: _column(sides, step) for step in _all(sides)}))
    if "ops" in stages:
        panels.append((f"GN + ReLU, {_DIRECTION}", _ratios, stages["ops"]["rows"]))
    return panels


def _medians(rows: dict) -> dict[str, float]:
    return {name: row["seconds"] for name, row in rows.items()}


def _all(sides: dict[str, dict]) -> list[str]:
    return list(dict.fromkeys(part for side in sides.values() for part in side))


def _column(sides: dict[str, dict], part: str) -> dict[str, float]:
    return {name: side.get(part, 0.0) for name, side in sides.items()}


def _stacked(axes, parts: dict[str, dict[str, float]]) -> None:
    """A bar a side, of {part: {side: seconds}}."""
    left = dict.fromkeys(next(iter(parts.values())), 0.0)
    for number, (part, values) in enumerate(parts.items()):
        style = {"color": _COLORS[number % len(_COLORS)], "hatch": "//" if number >= len(_COLORS) else None}
        axes.barh(list(values), list(values.values()), left=list(left.values()), label=part, edgecolor="white", **style)
        left = {side: left[side] + value for side, value in values.items()}
    stock = left.get(side_name("GN", "stock"))
    for side, total in left.items():
        times = f" ({stock / total:.2f}x)" if stock else ""
        axes.annotate(f"{total:.3g} s{times}", (total, side), xytext=(3, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, 1.3 * max(left.values()))
    axes.set_xlabel("seconds; in brackets: times as fast as stock")
    axes.invert_yaxis()
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.13), ncols=4, frameon=False, fontsize="small")


def _ratios(axes, rows: list[dict]) -> None:
    """Bars of each shape's variants, with their spread; stock is at 1."""
    rows = [row for row in rows if row["direction"] == _DIRECTION]
    names, variants = (list(dict.fromkeys(row[key] for row in rows)) for key in ("name", "variant"))
    height = 0.8 / len(variants)
    for number, variant in enumerate(variants):
        chosen = [row["ratio"] for row in rows if row["variant"] == variant]
        values = [row["ratio"] for row in chosen]
        reach = [[r["ratio"] - r["spread"][0] for r in chosen], [r["spread"][1] - r["ratio"] for r in chosen]]
        places = [place + (number - (len(variants) - 1) / 2) * height for place in range(len(names))]
        axes.barh(places, values, height, xerr=reach, label=variant, color=_COLORS[number], error_kw={"linewidth": 0.8})
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("times as fast as F.group_norm and F.relu")
    axes.invert_yaxis()
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.13), ncols=3, frameon=False, fontsize="small")
