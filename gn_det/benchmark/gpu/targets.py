"""The targets of gn_det on one H100 (R50-FPN-GN, 800 pixels), and whether a record reaches them."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..timing import ratio
from .candidates import BF16, CANDIDATES, FP32, counterpart

_LARGE_MAP = 8e6  # bytes
_NOT_SLOWER = 0.98  # with 2 % of noise


class Value(NamedTuple):
    """A measured number and its text."""

    number: float
    text: str


class Target(NamedTuple):
    """A target: its name, the bound in words, the measured value (None if there is none) and whether it is reached."""

    name: str
    bound: str
    value: Value | None
    reached: bool

    @property
    def verdict(self) -> str:
        """Return "reached", "missed" or "not measured"."""
        return "not measured" if self.value is None else "reached" if self.reached else "missed"


def targets(stage: dict) -> list[Target]:
    """Return the targets beside what was measured.

    Args:
        stage: see :func:`gn_det.benchmark.gpu.stage.compare_on_gpu`.
    """
    rows = stage["candidates"]
    return [
        _at_most("from the start to iteration 20", "at most stock + 30 s", 30, _slowest_start(rows)),
        _at_least("inference, batch 1", ">= 3x stock fp32", 3, _speedup(rows, "inference", 1, FP32)),
        _at_least("inference, batch 1", ">= 2x stock bf16", 2, _speedup(rows, "inference", 1, BF16)),
        _at_least("training, batch 2", ">= 2x stock bf16", 2, _speedup(rows, "training", 2, BF16)),
        _at_least("training, batch 16", ">= 100 images/s", 100, _throughput(rows, 16)),
        _at_least("training, batch 16", ">= 2x stock bf16", 2, _speedup(rows, "training", 16, BF16)),
        _at_most("training, batch 16, peak memory", "<= 0.6x stock bf16", 0.6, _memory(rows, 16)),
        _at_most("training, GN above BN* with the same heads", "<= 8 %", 0.08, _gn_overhead(rows)),
        _at_least("GN + ReLU, bf16, maps over 8 MB", ">= 80 % of a copy's bandwidth", 0.8, _bandwidth(rows)),
        _at_least(
            "GN + ReLU, bf16, each shape",
            f"never slower than PyTorch (>= {_NOT_SLOWER}x)",
            _NOT_SLOWER,
            _slowest_operation(rows),
        ),
        _at_least(
            "defaults (gn_det fp32)",
            f"never slower than stock fp32 (>= {_NOT_SLOWER}x)",
            _NOT_SLOWER,
            _slowest_default(rows),
        ),
        Target("CPU", "not slower than before", None, False),
    ]


def speedup(rows: dict, stage: str, batch: int, name: str, reference: str) -> dict | None:
    """Return the time of the reference divided by that of a candidate, as :func:`ratio` does, or None.

    Args:
        rows: "candidates" of the record.
        stage: "training" or "inference".
    """
    a, b = (rows.get(n, {}).get(stage, {}).get(str(batch), {}).get("rounds") for n in (reference, name))
    if not a or not b:
        return None
    rounds = min(len(a), len(b))
    return ratio(a[:rounds], b[:rounds])


def _at_least(name: str, bound: str, number: float, value: Value | None) -> Target:
    return Target(name, bound, value, value is not None and value.number >= number)


def _at_most(name: str, bound: str, number: float, value: Value | None) -> Target:
    return Target(name, bound, value, value is not None and value.number <= number)


def _is_gn_det(name: str) -> bool:
    return not CANDIDATES[name].stock and CANDIDATES[name].norm == "GN"


def _measured(rows: dict, stage: str, batch: int) -> Iterator[tuple[str, dict]]:
    """Yield (name, row) of each GN candidate of gn_det that was measured."""
    for name, candidate in rows.items():
        row = candidate.get(stage, {}).get(str(batch), {})
        if _is_gn_det(name) and "seconds" in row:
            yield name, row


def _fastest(rows: dict, stage: str, batch: int) -> tuple[str, dict] | None:
    return min(_measured(rows, stage, batch), key=lambda item: item[1]["seconds"], default=None)


def _speedup(rows: dict, stage: str, batch: int, reference: str) -> Value | None:
    """Return the speedup of the fastest candidate of gn_det over the reference."""
    fastest = _fastest(rows, stage, batch)
    found = fastest and speedup(rows, stage, batch, fastest[0], reference)
    return Value(found["ratio"], f"{format_ratio(found)}, {fastest[0]}") if fastest and found else None


def format_ratio(row: dict) -> str:
    """Format a ratio with its spread, such as "1.50x (1.40 to 1.60)"."""
    return f"{row['ratio']:.2f}x ({row['spread'][0]:.2f} to {row['spread'][1]:.2f})"


def _slowest_start(rows: dict) -> Value | None:
    """Return the largest difference between a start of gn_det and of stock with the same options."""
    found = []
    for name in filter(_is_gn_det, rows):
        reference = counterpart(name, stock=True)
        start, stock = (rows.get(n or "", {}).get("start", {}) for n in (name, reference))
        if "seconds" in start and "seconds" in stock:
            seconds = start["seconds"] - stock["seconds"]
            found.append(Value(seconds, f"{seconds:+.1f} s, {name}"))
        elif "did not answer" in start.get("error", ""):
            found.append(Value(float("inf"), f"{name} {start['error']}"))
    return max(found, default=None)


def _throughput(rows: dict, batch: int) -> Value | None:
    fastest = _fastest(rows, "training", batch)
    if fastest is None:
        return None
    number = batch / fastest[1]["seconds"]
    return Value(number, f"{number:.0f} images/s, {fastest[0]}")


def _memory(rows: dict, batch: int) -> Value | None:
    """Return the peak memory of the fastest candidate of gn_det, divided by stock's."""
    fastest = _fastest(rows, "training", batch)
    stock = rows.get(BF16, {}).get("training", {}).get(str(batch), {}).get("peak")
    if not fastest or not stock or not fastest[1]["peak"]:
        return None
    number = fastest[1]["peak"] / stock
    return Value(number, f"{number:.2f}x, {fastest[0]}")


def _gn_overhead(rows: dict) -> Value | None:
    """Return the largest overhead of GN over BN*, over the batch sizes, for the fastest GN candidate of gn_det."""
    found = []
    batches = {int(batch) for row in rows.values() for batch in row.get("training", {})}
    for batch in sorted(batches):
        pairs = ((row["seconds"], name) for name, row in _measured(rows, "training", batch) if _frozen(name) in rows)
        _, name = min(pairs, default=(0.0, ""))
        value = name and speedup(rows, "training", batch, _frozen(name), name)
        if value:
            found.append(Value(value["ratio"] - 1, f"{value['ratio'] - 1:+.1%}, batch {batch}, {name}"))
    return max(found, default=None)


def _frozen(name: str) -> str:
    return counterpart(name, norm="FrozenBN") or ""


def _operation_rows(rows: dict) -> list[dict]:
    """Return the rows of GN + ReLU, forward and backward, of the candidate that is faster on average."""
    measured = [row["operations"] for row in rows.values() if "rows" in row.get("operations", {})]

    def mean_speedup(operations: dict) -> float:
        (summary,) = operations["summary"].values()
        return summary["forward + backward"]["ratio"]

    best: dict = max(measured, key=mean_speedup, default={"rows": []})
    return [row for row in best["rows"] if row["direction"] == "forward + backward"]


def _bandwidth(rows: dict) -> Value | None:
    large = [row for row in _operation_rows(rows) if 2 * _elements(row["shape"]) > _LARGE_MAP]
    return _smallest(large, lambda row: row["bandwidth_share"]["ratio"], "{:.0%}")


def _slowest_operation(rows: dict) -> Value | None:
    return _smallest(_operation_rows(rows), lambda row: row["ratio"]["ratio"], "{:.2f}x")


def _smallest(rows: list[dict], number: Callable[[dict], float], form: str) -> Value | None:
    values = [Value(number(row), f"{form.format(number(row))}, {row['name']}") for row in rows]
    return min(values, default=None)


def _elements(shape: list[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _slowest_default(rows: dict) -> Value | None:
    found = []
    for stage, batches in rows.get("gn_det fp32", {}).items():
        for batch in batches if stage in ("training", "inference") else ():
            value = speedup(rows, stage, int(batch), "gn_det fp32", FP32)
            if value:
                found.append(Value(value["ratio"], f"{format_ratio(value)}, {stage}, batch {batch}"))
    return min(found, default=None)
