"""Compare the AP of runs in a table and a figure; runs that differ only in the seed form one row.

A row shows the mean over its seeds and the sample standard deviation (n - 1). The error of a
difference between two means is its standard error, sqrt(s1^2 / n1 + s2^2 / n2). With one seed,
neither is shown.
"""

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from ..data.identity import describe_identity, read_identities, read_identity
from ..drawing.figures import BLUE, label_rows, save_figure
from ..errors import GNDetError, did_you_mean
from ..zoo.index import published
from .records import read_record


def mean_and_spread(values: Sequence[float]) -> str:
    """Format the mean and the sample standard deviation as ``48.1 ± 0.9``.

    The deviation is left out if there is only one value.
    """
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def difference(values: Sequence[float], reference: Sequence[float]) -> str:
    """Format mean(values) - mean(reference) and its standard error as ``+2.2 ± 0.7``.

    The error is left out if ``values`` or ``reference`` has only one value.
    """
    delta = f"{statistics.fmean(values) - statistics.fmean(reference):+.1f}"
    if min(len(values), len(reference)) < 2:
        return delta
    return f"{delta} ± {math.sqrt(sum(statistics.variance(v) / len(v) for v in (values, reference))):.1f}"


def metric_values(records: Sequence[dict], kind: str, metric: str = "AP") -> list[float]:
    """Return a metric in percent for each record that has it.

    The value of a run that diverged is 0, because its model detects nothing.

    Args:
        kind: "box" or "mask".
        metric: for example "AP" or "AP50".
    """
    found = [0.0 if "diverged" in r else (r[kind] or {}).get(metric) for r in records]
    return [value for value in found if value is not None]


def load_runs(paths: Sequence[str | Path], dataset: str = "") -> list["Row"]:
    """Load the rows of a comparison, in the order of ``paths``.

    Runs that differ only in the seed share a row. They must have been trained on equal data, as far as their
    records say. Of each training, the last evaluation counts; of several evaluations of the same weights, one.

    Args:
        paths: each an ``OUTPUT_DIR``, a record (JSON), or a folder of records. ``NAME=PATH`` gives
            the row a name; a path without a name never shares a row with a named one.
        dataset: the name of the test set whose records are compared; "" if all are of one test set.

    Raises:
        GNDetError: a path has no record, or none of ``dataset``, or the records are of different datasets.
    """
    rows: dict[tuple, Row] = {}
    for text in map(str, paths):
        name, _, path = text.rpartition("=") if not Path(text).exists() else ("", "", text)
        for record in _of_dataset(_last_records(Path(path)), dataset, path):
            key = name, record["config_sha256"], record["iteration"], train_data_of(record)
            row = rows.setdefault(key, Row(name, []))
            if not any(_same_weights(record, other) for other in row.records):
                row.records.append(record)
    remedy = "pass records on one dataset, or name it with --dataset"
    check_test_data([record for row in rows.values() for record in row.records], remedy)
    _name_rows(list(rows.values()))
    return list(rows.values())


def _of_dataset(records: list[dict], dataset: str, path: str) -> list[dict]:
    found = [record for record in records if dataset in ("", record["dataset"])]
    if not found:
        known = sorted({record["dataset"] for record in records})
        raise GNDetError(f"{path} has no record of an evaluation on {dataset!r}{did_you_mean(dataset, known)}.")
    return found


def train_data_of(record: dict) -> tuple[str, ...]:
    """Return the digests of the training data of a record; () if they are not known."""
    return tuple(sorted(data["digest"] for data in read_identities(record.get("train_data")).values() if data))


def _same_weights(record: dict, other: dict) -> bool:
    """Return whether two records of one row are of the same weights.

    A training does not know the digest of its weights. Equal seeds and metrics tell that its record and
    that of a later evaluation of its weights belong together.
    """
    digest = record.get("weights_sha256")
    same_results = record["box"] and all(record[key] == other[key] for key in ("seed", "box", "mask"))
    return record == other or bool(same_results) or bool(digest and digest == other.get("weights_sha256"))


def check_test_data(records: Sequence[dict], remedy: str = "pass records on one dataset") -> None:
    """Check that all records are on the same dataset, by content, or by name where a record has no digest.

    Args:
        remedy: the end of the error message.

    Raises:
        GNDetError: they are not.
    """
    known: dict[str, str] = {}  # digest, or name of the dataset -> description
    for record in records:
        if data := read_identity(record.get("data")):
            known.setdefault(data["digest"], describe_identity(record["dataset"], data))
    named = {record["dataset"] for record in records if read_identity(record.get("data"))}
    for record in records:
        if not read_identity(record.get("data")) and record["dataset"] not in named:
            known.setdefault(record["dataset"], record["dataset"])
    if len(known) > 1:
        raise GNDetError(
            f"The records are on different datasets: {', '.join(sorted(known.values()))}, so their AP cannot be compared; "
            f"{remedy}."
        )


def _last_records(path: Path) -> list[dict]:
    """Return the record of the last evaluation of each training under ``path``."""
    folder = path / "records" if (path / "records").is_dir() else path
    files = sorted(folder.glob("*.json")) if folder.is_dir() else [path]
    if not files:
        raise GNDetError(f"{path} has no record; pass the OUTPUT_DIR of a run that was evaluated, or a record (JSON).")
    last: dict[tuple, dict] = {}
    for file in files:
        record = read_record(file)
        missing = [key for key in ("config_sha256", "dataset", "box", "mask", "seed") if key not in record]
        if missing:
            raise GNDetError(
                f"{file} is not the record of an evaluation: it has no {', '.join(missing)}; pass a file that an "
                "evaluation wrote to OUTPUT_DIR/records."
            )
        record.setdefault("iteration", None)
        test_data, weights = (read_identity(record.get("data")) or {}).get("digest"), record.get("weights_sha256")
        key = record["config_sha256"], record["dataset"], record["seed"], weights, test_data, train_data_of(record)
        if (record["iteration"] or 0) >= (last.get(key, record)["iteration"] or 0):
            last[key] = record
    return list(last.values())


@dataclasses.dataclass
class Row:
    """Runs of one recipe that differ only in the seed."""

    name: str
    records: list[dict]

    def values(self, kind: str, metric: str) -> list[float]:
        """Return the metric of each run, see :func:`metric_values`."""
        return metric_values(self.records, kind, metric)


def _name_rows(rows: Sequence[Row]) -> None:
    """Name the rows that have no name by their config and the keys in which the rows differ."""
    changes = [row.records[0].get("changed") or {} for row in rows]
    for row, changed in zip(rows, changes, strict=True):
        record = row.records[0]
        if row.name:
            continue
        if variant := record.get("variant"):
            row.name = f"{variant['norm']}, batch {variant['batch']}"
            continue
        different = {k: v for k, v in changed.items() if any(k not in c or c[k] != v for c in changes)}
        # Only the last part of a key is shown. Equal words, such as the NORM of the backbone, the
        # FPN and the heads, are shown once.
        counts = Counter(f"{key.split('.')[-1]}={value}" for key, value in different.items())
        words = [f"{word} ({number} keys)" if number > 1 else word for word, number in counts.items()]
        if len(words) > 3:
            words[3:] = [f"(+{len(words) - 3} more)"]
        row.name = " ".join([record.get("config") or "config", *words])
    _name_training_data(rows)
    names = Counter(row.name for row in rows)
    for row in rows:
        if names[row.name] > 1:  # they differ in a key that the name does not show, or in the version of the config
            row.name += f" [{row.records[0]['config_sha256'][:7]}, iteration {row.records[0]['iteration']}]"


def _name_training_data(rows: Sequence[Row]) -> None:
    """Add the training data to the names of rows with one name that were trained on different data."""
    trained: dict[str, set] = {}
    for row in rows:
        trained.setdefault(row.name, set()).add(train_data_of(row.records[0]))
    for row in [row for row in rows if len(trained[row.name]) > 1]:
        data = read_identities(row.records[0].get("train_data"))
        described = " and ".join(describe_identity(name, entry) for name, entry in data.items())
        row.name += f", trained on {described or 'unknown data'}"


def paper_rows(names: Sequence[str]) -> list[Row]:
    """Return the published results of shipped configs as rows.

    Raises:
        GNDetError: the paper has no result for one of the configs.
    """
    rows = []
    for name in names:
        row = published(name)
        if not row or not (row["box"] or row["mask"]):
            raise GNDetError(
                f"The paper has no result for the config {name!r}; use a config that docs/configs.md lists with AP."
            )
        rows.append(Row(f"{row['source']}: {name}", [{**row, "dataset": "COCO val2017"}]))
    return rows


_COLUMNS = [("box", "AP"), ("box", "AP50"), ("box", "AP75"), ("mask", "AP"), ("mask", "AP50"), ("mask", "AP75")]


def runs_table(rows: Sequence[Row], paper: Sequence[Row] = ()) -> str:
    """Format the rows as a Markdown table.

    It shows AP, AP50 and AP75 with their standard deviations, and the difference in AP from the
    first row.

    Args:

        paper: rows of published results, which get no difference.
    """
    columns = [(k, m) for k, m in _COLUMNS if any(row.values(k, m) for row in (*rows, *paper))]
    headers = ["run", "data", "seeds"]
    for kind, metric in columns:
        headers += [f"{kind} {metric}", "vs. first"] if metric == "AP" else [f"{kind} {metric}"]
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
    """Draw box and mask AP, one dot per run and a bar at the mean of each row, and save the figure.

    Args:
        path: the file; its suffix selects the format, for example PNG or SVG.
        paper: rows of published results, drawn as hollow diamonds.

    Raises:
        GNDetError: the file cannot be written, or matplotlib does not know its suffix.
    """
    from matplotlib.figure import Figure  # here, because the import takes a second and training does not need it

    all_rows = [*rows, *paper]
    kinds = [kind for kind in ("box", "mask") if any(row.values(kind, "AP") for row in all_rows)] or ["box"]
    figure = Figure(figsize=(2 + 4 * len(kinds), 1.2 + 0.4 * len(all_rows)), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for y, row in enumerate(all_rows):
            values = row.values(kind, "AP")
            if values:
                hollow = {"marker": "D", "facecolors": "none", "edgecolors": "black"} if row in paper else {}
                axes.scatter(values, [y] * len(values), s=28, **({"color": BLUE, "alpha": 0.7} | hollow))
                axes.plot([statistics.fmean(values)] * 2, [y - 0.3, y + 0.3], color="black", linewidth=1)
        axes.set(xlabel=f"{kind} AP (%)")
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    label_rows(panels[0], [row.name for row in all_rows])  # the panels share the rows
    panels[0].invert_yaxis()
    save_figure(figure, path)
