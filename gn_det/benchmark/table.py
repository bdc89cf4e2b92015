"""A benchmark's record as tables in Markdown. What was not measured says so."""

from collections.abc import Callable

from tabulate import tabulate

from .sides import side_name
from .timeline import PARTS

NOT_MEASURED = "not measured"


def tables(record: dict) -> str:
    """A summary first, then one table for each stage."""
    hardware = record["hardware"]
    machine = hardware.get("gpu") or f"{hardware['cpu']}, {record['threads']} threads"
    head = (
        f"{record['config']} on {machine}, PyTorch {record['versions']['torch']}, {record['repeats']} rounds, random "
        f"weights. Ratios are stock's time over gn_det's: the median of the rounds, and in brackets the least and the most."
    )
    texts = [head, summary(record)]
    for stage, text in _TEXTS.items():
        found = record["stages"].get(stage)
        if found and "not measured" not in found:
            texts.append(f"{stage}{_size(found)}:\n\n{text(found)}")
    return "\n\n".join(texts)


def summary(record: dict) -> str:
    """The table of what gn_det does beside stock detectron2's GN model, one line a figure."""
    measured = _measured(record["stages"])
    rows = [[name, measured.get(name) or NOT_MEASURED] for name in _SUMMARY]
    return _table(rows, ["gn_det beside stock detectron2's GN model", "measured"])


_SUMMARY = (
    "inference",
    "inference in fp32",
    "its outputs",
    "training step",
    "peak memory of training",
    "GN + ReLU, forward + backward",
    "its share of a copy's bandwidth",
    "COCOeval, boxes",
    "COCOeval, masks",
    "COCOeval, numbers",
    "GN above frozen BN, inference",
    "GN above frozen BN, training",
)


def _measured(stages: dict) -> dict[str, str | None]:
    inference, training, coco = (stages.get(name, {}) for name in ("inference", "training", "coco"))
    fp32 = side_name("GN", "fp32")
    cells = {
        "inference": _fastest(inference),
        "inference in fp32": _of(inference.get("ratios", {}).get(fp32)),
        "its outputs": _equality(inference.get("sides", {}).get(fp32, {}).get("difference")),
        "training step": _fastest(training),
        "peak memory of training": _memory(training),
        "GN above frozen BN, inference": _above(inference),
        "GN above frozen BN, training": _above(training),
    }
    cells |= {f"COCOeval, {kind}": _of(coco.get(kind)) for kind in ("boxes", "masks")}
    if "boxes" in coco:
        cells["COCOeval, numbers"] = "equal" if all(row["equal"] for row in coco.values()) else "NOT equal"
    if summary := stages.get("ops", {}).get("summary"):
        rows = {variant: by_direction["forward + backward"] for variant, by_direction in summary.items()}
        cells["GN + ReLU, forward + backward"] = "; ".join(f"{_of(row)} {v}" for v, row in rows.items())
        cells["its share of a copy's bandwidth"] = "; ".join(f"{row['of_copy']:.0%} {v}" for v, row in rows.items())
    return cells


def _of(row: dict | None) -> str | None:
    return f"{row['ratio']:.2f}x ({row['spread'][0]:.2f} to {row['spread'][1]:.2f})" if row else None


def _fastest_name(stage: dict) -> str | None:
    ratios = stage.get("ratios") or {}
    return max(ratios, key=lambda name: ratios[name]["ratio"]) if ratios else None


def _fastest(stage: dict) -> str | None:
    name = _fastest_name(stage)
    return name and f"{_of(stage['ratios'][name])}, {name}"


def _memory(stage: dict) -> str | None:
    name, stock = _fastest_name(stage), stage.get("sides", {}).get(side_name("GN", "stock"))
    return name and stock and f"{stage['sides'][name]['peak'] / stock['peak']:.2f}x, {name}"


def _above(stage: dict) -> str | None:
    """What GN takes over frozen BN in each way that has both."""
    rows = {way: norms["FrozenBN"] for way, norms in stage.get("above", {}).items() if "FrozenBN" in norms}
    return "; ".join(f"{_more(row)} {side_name('GN', way)}" for way, row in rows.items()) or None


def _more(row: dict) -> str:
    least, most = row["spread"]
    return f"{row['ratio'] - 1:+.1%} ({least - 1:+.1%} to {most - 1:+.1%})"


def _equality(row: dict | None) -> str | None:
    if row is None:
        return None
    apart = f"boxes {row['boxes_relative']:.1e}, scores {row['scores']:.1e}, {row['unmatched']} without a partner"
    return f"{'equal' if row['equal'] else 'NOT equal'} ({apart})"


def _sides(stage: dict) -> str:
    """Whole models: seconds, ratio, what GN costs there, work and memory."""
    work = [key for key in ("rois", "foreground", "detections") if key in next(iter(stage["sides"].values()))]
    steps = list(next(iter(stage["sides"].values())).get("steps", {}))
    rows = []
    for name, side in stage["sides"].items():
        above = stage["above"].get(side["way"], {}).get(side["norm"])
        rows.append([name, _seconds(side), _of(stage["ratios"].get(name)) or "", _more(above) if above else ""])
        rows[-1] += [f"{side['steps'][step]['seconds']:.4g}" for step in steps]
        rows[-1] += [str(side[key]) for key in work] + [f"{side['peak'] / 2**30:.2f}"]
    headers = ["", "seconds", "stock / it", "GN takes more", *steps, *work, "peak GiB"]
    return f"{_table(rows, headers)}\n\nPeak: {stage['memory']}."


def _seconds(row: dict) -> str:
    return f"{row['seconds']:.4g} ({row['spread'][0]:.4g} to {row['spread'][1]:.4g})"


def _parts(stage: dict) -> str:
    names = [part for part in PARTS if any(part in side["parts"] for side in stage["sides"].values())]
    rows = [[part, *(f"{side['parts'][part]['seconds']:.4g}" for side in stage["sides"].values())] for part in names]
    sums = [sum(part["seconds"] for part in side["parts"].values()) for side in stage["sides"].values()]
    side = next(iter(stage["sides"].values()))
    given = f"Medians in seconds. Each side has {side['rois']} RoIs and {side['detections']} detections."
    return f"{_table([*rows, ['sum', *(f'{total:.4g}' for total in sums)]], ['', *stage['sides']])}\n\n{given}"


def _operations(stage: dict) -> str:
    rows = []
    for row in stage["rows"]:
        shape = "x".join(map(str, row["shape"]))
        micro = [f"{row[who]['seconds'] * 1e6:.0f}" for who in ("stock", "gn_det")]
        share = f"{row['of_copy']['ratio']:.0%}"
        rows.append([row["name"], shape, row["variant"], row["direction"], *micro, _of(row["ratio"]), share])
        rows[-1].append(f"{row['copy_gigabytes']:.0f}")
    headers = ["", "shape", "variant", "", "stock, us", "gn_det, us", "ratio", "of copy", "copy GB/s"]
    return _table(rows, headers)


def _coco(stage: dict) -> str:
    rows = [
        [
            kind,
            str(row["images"]),
            str(row["detections"]),
            f"{row['pycocotools']:.4g}",
            f"{row['hotcoco']:.4g}",
            _of(row),
        ]
        for kind, row in stage.items()
    ]
    return _table(rows, ["", "images", "detections", "pycocotools, s", "hotcoco, s", "ratio"])


_TEXTS: dict[str, Callable[[dict], str]] = {
    "inference": _sides,
    "parts": _parts,
    "training": _sides,
    "ops": _operations,
    "coco": _coco,
}


def _size(stage: dict) -> str:
    return f", {stage['batch']} x {stage['size'][0]} x {stage['size'][1]}" if "size" in stage else ""


def _table(rows: list[list], headers: list[str]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)
