"""Results side by side: records of runs that differ only in the seed are one row, with mean and spread.

The spread is the sample standard deviation over seeds (n - 1); that of a difference of two means is
sqrt(s1^2 / n1 + s2^2 / n2), its standard error. One seed has no spread, and then none is shown.
"""

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from ..drawing.figures import BLUE, save_figure
from ..errors import GNDetError
from ..zoo.index import published
from .records import read_record


def mean_and_spread(values: Sequence[float]) -> str:
    """``48.1 ± 0.9``; the mean alone for one value."""
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def difference(values: Sequence[float], to: Sequence[float]) -> str:
    """``+2.2 ± 0.7``: the difference of the means, with its standard error where both have a spread."""
    delta = f"{statistics.fmean(values) - statistics.fmean(to):+.1f}"
    if min(len(values), len(to)) < 2:
        return delta
    return f"{delta} ± {math.sqrt(sum(statistics.variance(v) / len(v) for v in (values, to))):.1f}"


def metric_values(records: Sequence[dict], kind: str, metric: str = "AP") -> list[float]:
    """A metric of "box" or "mask" in percent, of the records that have it. A run that diverged detects nothing: 0."""
    found = [0.0 if "diverged" in r else (r[kind] or {}).get(metric) for r in records]
    return [value for value in found if value is not None]


def load_runs(paths: Sequence[str | Path]) -> list["Row"]:
    """The rows of a comparison, in the order of ``paths``; runs that differ only in the seed share one.

    Args:
        paths: an ``OUTPUT_DIR``, a record (JSON), or a folder of records; ``NAME=PATH`` gives the row a name.

    Raises:
        GNDetError: no record there, or records of different data sets.
    """
    rows: dict[tuple, Row] = {}
    for text in map(str, paths):
        name, _, path = text.rpartition("=") if not Path(text).exists() else ("", "", text)
        for record in _last_records(Path(path)):
            row = rows.setdefault((name, record["config_sha256"], record["iteration"]), Row(name, []))
            if record not in row.records:
                row.records.append(record)
    datasets = sorted({record["dataset"] for row in rows.values() for record in row.records})
    if len(datasets) > 1:
        raise GNDetError(f"AP on different data sets cannot be compared: these records are on {', '.join(datasets)}.")
    _name(list(rows.values()))
    return list(rows.values())


def _last_records(path: Path) -> list[dict]:
    """Of each training its last evaluation."""
    folder = path / "records" if (path / "records").is_dir() else path
    files = sorted(folder.glob("*.json")) if folder.is_dir() else [path]
    if not files:
        raise GNDetError(f"{path} holds no record: name an OUTPUT_DIR whose run was evaluated, or a record (JSON).")
    last: dict[tuple, dict] = {}
    for file in files:
        record = read_record(file)
        lacks = [key for key in ("config_sha256", "dataset", "box", "mask", "seed") if key not in record]
        if lacks:
            raise GNDetError(f"{file} is no record of an evaluation: it has no {', '.join(lacks)}.")
        record.setdefault("iteration", None)
        key = record["config_sha256"], record["dataset"], record["seed"]
        if (record["iteration"] or 0) >= (last.get(key, record)["iteration"] or 0):
            last[key] = record
    return list(last.values())


@dataclasses.dataclass
class Row:
    """Runs of one recipe, which differ in the seed."""

    name: str
    records: list[dict]

    def values(self, kind: str, metric: str) -> list[float]:
        return metric_values(self.records, kind, metric)


def _name(rows: Sequence[Row]) -> None:
    """Name the rows by what distinguishes them: the config, and the changed keys that not all share."""
    changes = [row.records[0].get("changed") or {} for row in rows]
    for row, changed in zip(rows, changes, strict=True):
        record = row.records[0]
        if row.name:
            continue
        differs = {k: v for k, v in changed.items() if any(k not in c or c[k] != v for c in changes)}
        if variant := record.get("variant"):
            row.name = f"{variant['norm']}, batch {variant['batch']}"
        else:
            alike = Counter(f"{key.split('.')[-1]}={value}" for key, value in differs.items())  # a NORM in each part
            words = [f"{word} ({number} keys)" if number > 1 else word for word, number in alike.items()]
            more = [f"(+{len(words) - 3} more)"] * (len(words) > 3)
            row.name = " ".join([record.get("config") or "config", *words[:3], *more])
    again = Counter(row.name for row in rows)
    for row in rows:
        if again[row.name] > 1:  # the same but for a key that is not shown, or the version
            row.name += f" [{row.records[0]['config_sha256'][:7]}, iteration {row.records[0]['iteration']}]"


def paper_rows(names: Sequence[str]) -> list[Row]:
    """The published results of shipped configs as rows.

    Raises:
        GNDetError: the paper has no number for one.
    """
    rows = []
    for name in names:
        row = published(name)
        if not row or not (row["box"] or row["mask"]):
            raise GNDetError(f"The paper has no number for a config {name!r}; README.md lists those that have one.")
        rows.append(Row(f"{row['source']}: {name}", [{**row, "dataset": "COCO val2017"}]))
    return rows


_COLUMNS = [("box", "AP"), ("box", "AP50"), ("box", "AP75"), ("mask", "AP"), ("mask", "AP50"), ("mask", "AP75")]


def runs_table(rows: Sequence[Row], paper: Sequence[Row] = ()) -> str:
    """One line a row: AP with its spread, and the difference to the first row. The paper's rows have none."""
    columns = [(k, m) for k, m in _COLUMNS if any(row.values(k, m) for row in (*rows, *paper))]
    headers = ["run", "data", "seeds"]
    for kind, metric in columns:
        headers += [f"{kind} {metric}", "to first"] if metric == "AP" else [f"{kind} {metric}"]
    lines = []
    for row in (*rows, *paper):
        seeds = "" if row in paper else str(len(row.records))
        line = [row.name, row.records[0]["dataset"], seeds]
        for kind, metric in columns:
            values, first = row.values(kind, metric), rows[0].values(kind, metric)
            line.append(mean_and_spread(values) if values else "-")
            if metric == "AP":
                line.append(difference(values, first) if values and first and row not in (rows[0], *paper) else "")
        lines.append(line)
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def draw_runs(rows: Sequence[Row], path: str | Path, paper: Sequence[Row] = ()) -> None:
    """Draw box and mask AP: a dot a run, a bar at the mean, the paper's as hollow diamonds. PNG or SVG by the name."""
    from matplotlib.figure import Figure  # it takes a second, which nobody who trains should wait

    everything = [*rows, *paper]
    kinds = [kind for kind in ("box", "mask") if any(row.values(kind, "AP") for row in everything)] or ["box"]
    figure = Figure(figsize=(2 + 4 * len(kinds), 1.2 + 0.4 * len(everything)), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for place, row in enumerate(everything):
            values = row.values(kind, "AP")
            if values:
                hollow = {"marker": "D", "facecolors": "none", "edgecolors": "black"} if row in paper else {}
                axes.scatter(values, [place] * len(values), s=28, **({"color": BLUE, "alpha": 0.7} | hollow))
                axes.plot([statistics.fmean(values)] * 2, [place - 0.3, place + 0.3], color="black", linewidth=1)
        axes.set(xlabel=f"{kind} AP (%)", yticks=range(len(everything)), yticklabels=[row.name for row in everything])
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    save_figure(figure, path)
