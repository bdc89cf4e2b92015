"""Format a benchmark's record as Markdown tables."""

from collections.abc import Callable

from tabulate import tabulate

from .candidates import candidate_name
from .gpu.report import format_gpu
from .phases import PARTS

NOT_MEASURED = "not measured"


def tables(record: dict) -> str:
    """Return a description of the run, a summary, and one table for each stage."""
    hardware = record["hardware"]
    machine = hardware.get("gpu") or f"{hardware['cpu']}, {record['threads']} threads"
    where = f"{record['config']} on {machine}, PyTorch {record['versions']['torch']}"
    if "gpu" in record["stages"]:
        return f"{where}.\n\n{format_gpu(record['stages']['gpu'])}"
    head = (
        f"{where}, {record['repeats']} rounds, random weights. Speedups are stock time / gn_det time: the median of the "
        "rounds, with the minimum and maximum in parentheses."
    )
    texts = [head, summary(record)]
    for stage, format_stage in _FORMATS.items():
        found = record["stages"].get(stage)
        if found:
            texts.append(f"{stage}{_format_size(found)}:\n\n{format_stage(found)}")
    return "\n\n".join(texts)


def summary(record: dict) -> str:
    """Return the table that compares gn_det with stock detectron2, with one line per quantity.

    Quantities without a value in the record are shown as "not measured".
    """
    measured = _summary_cells(record["stages"])
    rows = [[name, measured.get(name) or NOT_MEASURED] for name in _SUMMARY]
    return _table(rows, ["gn_det compared with stock detectron2's GN model", "measured"])


_SUMMARY = (
    "inference",
    "inference in fp32",
    "outputs in fp32",
    "training step",
    "peak memory of training",
    "GN + ReLU, forward + backward",
    "GN + ReLU, share of a copy's bandwidth",
    "COCOeval, boxes",
    "COCOeval, masks",
    "COCOeval, results",
    "GN overhead over frozen BN, inference",
    "GN overhead over frozen BN, training",
)


def _summary_cells(stages: dict) -> dict[str, str | None]:
    inference, training, coco = (stages.get(name, {}) for name in ("inference", "training", "coco"))
    fp32 = candidate_name("GN", "fp32")
    cells = {
        "inference": _best_speedup(inference),
        "inference in fp32": _format_ratio(inference.get("ratios", {}).get(fp32)),
        "outputs in fp32": _format_difference(inference.get("candidates", {}).get(fp32, {}).get("difference")),
        "training step": _best_speedup(training),
        "peak memory of training": _memory_ratio(training),
        "GN overhead over frozen BN, inference": _overhead_over_frozen_bn(inference),
        "GN overhead over frozen BN, training": _overhead_over_frozen_bn(training),
    }
    cells |= {f"COCOeval, {kind}": _format_ratio(coco.get(kind)) for kind in ("boxes", "masks")}
    if "boxes" in coco:
        cells["COCOeval, results"] = "equal" if all(row["equal"] for row in coco.values()) else "NOT equal"
    if by_variant := stages.get("ops", {}).get("summary"):
        rows = {variant: by_direction["forward + backward"] for variant, by_direction in by_variant.items()}
        speedups = (f"{_format_ratio(row)} {variant}" for variant, row in rows.items())
        shares = (f"{row['bandwidth_share']:.0%} {variant}" for variant, row in rows.items())
        cells["GN + ReLU, forward + backward"] = "; ".join(speedups)
        cells["GN + ReLU, share of a copy's bandwidth"] = "; ".join(shares)
    return cells


def _format_ratio(row: dict | None) -> str | None:
    return f"{row['ratio']:.2f}x ({row['spread'][0]:.2f} to {row['spread'][1]:.2f})" if row else None


def _fastest(stage: dict) -> str | None:
    """Return the name of the gn_det candidate with the largest speedup over stock."""
    ratios = stage.get("ratios") or {}
    return max(ratios, key=lambda name: ratios[name]["ratio"]) if ratios else None


def _best_speedup(stage: dict) -> str | None:
    name = _fastest(stage)
    return name and f"{_format_ratio(stage['ratios'][name])}, {name}"


def _memory_ratio(stage: dict) -> str | None:
    """Return the fastest candidate's peak memory, divided by stock's."""
    name, stock = _fastest(stage), stage.get("candidates", {}).get(candidate_name("GN", "stock"))
    return name and stock and f"{stage['candidates'][name]['peak'] / stock['peak']:.2f}x, {name}"


def _overhead_over_frozen_bn(stage: dict) -> str | None:
    """Return GN's overhead over frozen BN, for each implementation in which both were measured."""
    overhead = stage.get("gn_overhead", {})
    rows = {implementation: norms["FrozenBN"] for implementation, norms in overhead.items() if "FrozenBN" in norms}
    return "; ".join(f"{_format_overhead(row)} {candidate_name('GN', key)}" for key, row in rows.items()) or None


def _format_overhead(row: dict) -> str:
    low, high = row["spread"]
    return f"{row['ratio'] - 1:+.1%} ({low - 1:+.1%} to {high - 1:+.1%})"


def _format_difference(row: dict | None) -> str | None:
    if row is None:
        return None
    details = f"boxes {row['boxes_relative']:.1e}, scores {row['scores']:.1e}, {row['unmatched']} unmatched"
    return f"{'equal' if row['equal'] else 'NOT equal'} ({details})"


def _format_models(stage: dict) -> str:
    """Format inference or training of whole models: seconds, speedup, GN overhead, work and memory."""
    first = next(iter(stage["candidates"].values()))
    work = [key for key in ("rois", "foreground", "detections") if key in first]
    steps = list(first.get("steps", {}))
    rows = []
    for name, candidate in stage["candidates"].items():
        overhead = stage["gn_overhead"].get(candidate["implementation"], {}).get(candidate["norm"])
        speedup = _format_ratio(stage["ratios"].get(name)) or ""
        row = [name, _format_seconds(candidate), speedup, _format_overhead(overhead) if overhead else ""]
        row += [f"{candidate['steps'][step]['seconds']:.4g}" for step in steps]
        row += [str(candidate[key]) for key in work]
        rows.append([*row, f"{candidate['peak'] / 2**30:.2f}"])
    headers = ["", "seconds", "speedup", "GN overhead", *steps, *work, "peak GiB"]
    explanation = "GN overhead: extra time of GN compared with the norm in that line."
    return f"{_table(rows, headers)}\n\n{explanation} Peak: {stage['memory']}."


def _format_seconds(row: dict) -> str:
    return f"{row['seconds']:.4g} ({row['spread'][0]:.4g} to {row['spread'][1]:.4g})"


def _format_parts(stage: dict) -> str:
    by_candidate = {name: candidate["parts"] for name, candidate in stage["candidates"].items()}
    names = [part for part in PARTS if any(part in parts for parts in by_candidate.values())]
    rows = [[name, *(f"{parts[name]['seconds']:.4g}" for parts in by_candidate.values())] for name in names]
    totals = [sum(part["seconds"] for part in parts.values()) for parts in by_candidate.values()]
    rows.append(["sum", *(f"{total:.4g}" for total in totals)])
    first = next(iter(stage["candidates"].values()))
    work = f"Each candidate has {first['rois']} RoIs and {first['detections']} detections."
    return f"{_table(rows, ['', *by_candidate])}\n\nMedians in seconds. {work}"


def _format_operations(stage: dict) -> str:
    rows = []
    for row in stage["rows"]:
        shape = "x".join(map(str, row["shape"]))
        microseconds = [f"{row[key]['seconds'] * 1e6:.0f}" for key in ("stock", "gn_det")]
        numbers = [_format_ratio(row["ratio"]), f"{row['bandwidth_share']['ratio']:.0%}"]
        names = [row["name"], shape, row["variant"], row["direction"]]
        rows.append([*names, *microseconds, *numbers, f"{row['copy_gigabytes']:.0f}"])
    headers = ["", "shape", "variant", "", "stock, us", "gn_det, us", "speedup", "share of copy", "copy, GB/s"]
    return _table(rows, headers)


def _format_host(stage: dict) -> str:
    rows = []
    for row in stage["rows"]:
        microseconds = [f"{row[side]['seconds'] * 1e6:.1f}" for side in ("stock", "gn_det")]
        launches = [str(number) for number in row["launches"]]
        rows.append([row["name"], row["direction"], *microseconds, _format_ratio(row["ratio"]), *launches])
    headers = ["", "", "stock, us", "gn_det, us", "stock / gn_det", "launches of stock", "launches of gn_det"]
    return f"{_table(rows, headers)}\n\nTime on the host per call of GN + ReLU, without the launches of kernels."


def _format_coco(stage: dict) -> str:
    rows = []
    for kind, row in stage.items():
        seconds = [f"{row[key]:.4g}" for key in ("pycocotools", "hotcoco")]
        rows.append([kind, str(row["images"]), str(row["detections"]), *seconds, _format_ratio(row)])
    return _table(rows, ["", "images", "detections", "pycocotools, s", "hotcoco, s", "speedup"])


_FORMATS: dict[str, Callable[[dict], str]] = {
    "inference": _format_models,
    "parts": _format_parts,
    "training": _format_models,
    "ops": _format_operations,
    "host": _format_host,
    "coco": _format_coco,
}


def _format_size(stage: dict) -> str:
    return f", {stage['batch']} x {stage['size'][0]} x {stage['size'][1]}" if "size" in stage else ""


def _table(rows: list[list], headers: list[str]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)
