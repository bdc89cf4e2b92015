"""Format the record of the stage gpu as Markdown tables."""

from tabulate import tabulate

from .candidates import BF16, FP32
from .targets import format_ratio, speedup, targets

_HEADERS = ["", "images/s", "ms", "", "waits, ms", "GPU busy", "kernels", "launches", "syncs", "peak GiB"]


def format_gpu(stage: dict) -> str:
    """Return the targets, and a table for the starts and for each batch size.

    Args:
        stage: see :func:`gn_det.benchmark.gpu.stage.compare_on_gpu`.
    """
    rows = stage["candidates"]
    plan, data = stage["plan"], stage["data"]
    head = (
        f"{data['images']} images with {data['objects']} objects: {data['source']}. Rounds: {plan['rounds']}; "
        f"{stage['seconds']:.0f} s in all. Random weights; RoIs from an IoU of {stage['overlap']} on are foreground, so "
        "that there are about as many as with trained weights. TF32 as PyTorch sets it for timings, and off for the "
        "comparison of outputs."
    )
    texts = [head, "Targets, for one H100 and R50-FPN-GN at 800 pixels:", _format_targets(stage)]
    texts += ["Start, in seconds with empty caches of compiled code, without imports:", _format_starts(rows)]
    for kind, batch in _batches(rows):
        if any("seconds" in row.get(kind, {}).get(str(batch), {}) for row in rows.values()):
            reference = BF16 if kind == "training" else FP32
            texts += [f"{kind}, batch {batch}:", _format_batch(rows, kind, batch, reference)]
    texts += [
        "Columns: median images per second (least to most of the rounds); speedup, round by round; time of an iteration, "
        "and the part in which it waits for the loader; time of the kernels and copies divided by it; kernels, launches by "
        "the host, and waits of the host for the GPU, per iteration."
    ]
    return "\n\n".join([*texts, *_format_places(rows), *_format_notes(rows)])


def format_rate(batch: int, row: dict) -> str:
    """Format images per second, such as "12.3 (11.9 to 12.8)", from the "seconds" and "spread" of an iteration."""
    median, most, least = (batch / seconds for seconds in (row["seconds"], *row["spread"]))
    digits = 0 if median >= 100 else 1
    return f"{median:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def _format_targets(stage: dict) -> str:
    on_gpu = stage["device"].startswith("cuda")
    lines = [[t.name, t.bound, t.value.text if t.value else "", t.verdict if on_gpu else "-"] for t in targets(stage)]
    return _table(lines, ["", "target", "measured", ""])


def _format_starts(rows: dict) -> str:
    lines = []
    for name, row in rows.items():
        start = row.get("start", {})
        times = [f"{start[key]:.1f}" if key in start else "-" for key in ("built", "first_iteration", "seconds")]
        lines.append([name, *times, "-" if "iterations" not in start else str(start["iterations"])])
    return _table(lines, ["", "model and loader", "first iteration", "last iteration", "iterations"])


def _batches(rows: dict) -> list[tuple[str, int]]:
    """Return each (stage, batch size) that was planned for a candidate."""
    found = [
        (kind, int(batch)) for row in rows.values() for kind in ("inference", "training") for batch in row.get(kind, {})
    ]
    return sorted(set(found))


def _format_batch(rows: dict, kind: str, batch: int, reference: str) -> str:
    lines = []
    for name, candidate in rows.items():
        row = candidate.get(kind, {}).get(str(batch), {})
        if "seconds" not in row:
            lines.append([name, *["-"] * (len(_HEADERS) - 1)])
            continue
        ratio = speedup(rows, kind, batch, name, reference)
        line = [name, format_rate(batch, row), f"{1000 * row['seconds']:.1f}"]
        line += [format_ratio(ratio) if ratio else "-", _number(row.get("waiting"), 1000, ".1f")]
        gpu = row.get("gpu") or {}
        line.append(_number(gpu.get("gpu_seconds"), 1 / row["seconds"], ".0%"))
        line += [_number(gpu.get(key), 1, ".0f") for key in ("kernels", "launches", "synchronizations")]
        line.append(_number(row.get("peak"), 2**-30, ".2f"))
        if kind == "inference":
            line += [_number(row.get("detections"), 1, ".0f"), _format_difference(row.get("difference"))]
        else:
            line.append(_number(row.get("foreground"), 1, ".0f"))
        lines.append(line)
    headers = [header or f"speedup over {reference}" if number else "" for number, header in enumerate(_HEADERS)]
    more = ["detections", f"outputs, compared with {FP32}"] if kind == "inference" else ["foreground RoIs"]
    return _table([line + ["-"] * (len(headers + more) - len(line)) for line in lines], headers + more)


def _number(value: float | None, factor: float, form: str) -> str:
    return "-" if value is None else format(value * factor, form)


def _format_difference(row: dict | None) -> str:
    if row is None:
        return "-"
    details = f"boxes {row['boxes_relative']:.0e}, scores {row['scores']:.0e}, {row['unmatched']} unmatched"
    return f"{'equal' if row['equal'] else 'not equal'} ({details})"


def _format_places(rows: dict) -> list[str]:
    """Return where the host waits in training, for the candidate of gn_det that waits least."""
    found = []
    for name, row in rows.items():
        for batch, training in row.get("training", {}).items():
            gpu = training.get("gpu") or {}
            if gpu.get("places"):
                found.append((gpu["synchronizations"], name, batch, gpu["places"]))
    if not found:
        return []
    _, name, batch, places = min(found, key=lambda row: row[0])
    listed = ", ".join(f"{place} ({count})" for place, count in places.items())
    return [f"Where the host waits for the GPU ({name}, training, batch {batch}): {listed}."]


def _format_notes(rows: dict) -> list[str]:
    """Return a list of all errors and warnings, each once per candidate."""
    lines = []
    for name, row in rows.items():
        parts = [("start", row.get("start", {})), ("GN + ReLU", row.get("operations", {}))]
        parts += [(f"{kind}, batch {batch}", row.get(kind, {}).get(str(batch), {})) for kind, batch in _batches(rows)]
        places: dict[str, list[str]] = {}
        for place, part in parts:
            if "error" in part:
                places.setdefault(part["error"], []).append(place)
        lines += [f"- {name} ({'; '.join(where)}): {error}" for error, where in places.items()]
        lines += [f"- {name}: {warning}" for warning in row.get("warnings", [])]
    return ["Not measured, and warnings:\n\n" + "\n".join(lines)] if lines else []


def _table(rows: list[list[str]], headers: list[str]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)
