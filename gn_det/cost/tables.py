"""Format the cost of a model as text tables of at most 100 columns."""

from collections import Counter
from textwrap import fill

from tabulate import tabulate

_MIB, _GIB = 2**20, 2**30
_WIDTH = 100  # characters
_MARGIN = (
    "Not included: the CUDA context, cuDNN's workspaces, the losses, and, with several GPUs, a second copy of the "
    "gradients. detectron2's model zoo reports 9 to 25 % more for such models, so leave a quarter of the memory free."
)


def format_analysis(result: dict, by_layer: bool = False) -> str:
    """Format the result of :func:`gn_det.cost.model.analyze` as tables.

    Args:
        by_layer: list each normalization layer in a row of its own. By default, equal layers of a part
            share a row.
    """
    size, padded, rois = result["size"], result["padded"], result["rois"]
    title = f"{result['config'] or 'This model'}, {result['classes']} classes, an image of {size[0]} x {size[1]} pixels"
    title += f" (padded to {padded[0]} x {padded[1]})" if size != padded else ""
    norms = _norms_by_layer(result["norms"]) if by_layer else _norms_table(result)
    blocks = [
        title,
        _parts_table(result),
        _parts_notes(result),
        f"Memory of a training step in GiB, with {rois['training']} RoIs and {rois['training_masks']} masks per image:",
        _memory_table(result["memory"]["training"]),
        _memory_notes(result["memory"]["inference"]),
        "Norms:",
        norms,
    ]
    return "\n\n".join(blocks)


def _table(rows: list[list], headers: list[str], floats: str | tuple[str, ...] = ".2f") -> str:
    return tabulate(rows, headers, tablefmt="github", floatfmt=floats, missingval="-")


def _parts_table(result: dict) -> str:
    keys = {"parameters": 1e6, "trained": 1e6, "flops": 1e9, "activations": 1e6, "kept": _MIB}
    rois, parts = result["rois"], result["parts"]
    roi_counts = {"box head": f", {rois['inference']} RoIs", "mask head": f", {rois['detections']} RoIs"}
    rows = []
    for part in parts:
        kinds = Counter(row["norm"] for row in result["norms"] if row["part"] == part["part"])
        norms = ", ".join(f"{number} {norm}" for norm, number in kinds.items())
        rows.append(
            [part["part"] + roi_counts.get(part["part"], ""), *(part[k] / unit for k, unit in keys.items()), norms]
        )
    total = [sum(part[key] for part in parts) / unit for key, unit in keys.items()]
    rows.append(["total", *total, f"{len(result['norms'])} norms"])
    headers = ["part", "params M", "trained M", "GFLOPs", "acts M", "kept MiB", "norms"]
    return _table(rows, headers, ("", ".2f", ".2f", ".1f", ".1f", ".0f", ""))


def _parts_notes(result: dict) -> str:
    flops = ", ".join(f"{name} {number / 1e9:.2f}" for name, number in result["flops_by_operator"].items())
    uncounted = [
        f"{name} ({number / 1e6:.0f} M elements)" if number and number > 1e6 else name
        for name, number in result["not_counted"].items()
    ]
    images = result["memory"]["training"][0]["images"]
    lines = [
        f"GFLOPs: inference on one image, one multiply-add counted as one FLOP (fvcore): {flops}.",
        f"not counted: {', '.join(uncounted)}, proposal selection, NMS, mask pasting.",
        "acts: activations, the output elements of convolutions and fc layers, inference on one image (fvcore).",
        f"kept: memory that the training forward pass keeps for backward, {images} image{'s' * (images > 1)}.",
    ]
    return "\n".join(fill(line, _WIDTH, subsequent_indent="  ") for line in lines)


def _memory_notes(inference: int) -> str:
    text = f"Inference on one image: {inference / _GIB:.2f} GiB. All in float32. {_MARGIN}"
    return fill(text, _WIDTH)


def _memory_table(steps: list[dict]) -> str:
    keys = ("weights", "gradients", "optimizer", "kept", "peak")
    rows = [[step["images"], *(step[key] / _GIB for key in keys)] for step in steps]
    headers = ["images per GPU", "weights", "gradients", "momentum", "kept for backward", "peak in total"]
    return _table(rows, headers)


def _norms_table(result: dict) -> str:
    """Return a table with one row for all layers that share part, type of norm, and trained or frozen."""
    order = [part["part"] for part in result["parts"]]
    equal: dict[tuple, list[dict]] = {}
    for row in sorted(result["norms"], key=lambda row: order.index(row["part"])):
        equal.setdefault((row["part"], row["norm"], row["trained"]), []).append(row)
    rows = [
        [part, len(group), norm, *_spread(group), "yes" if trained else "no"]
        for (part, norm, trained), group in equal.items()
    ]
    return _table(rows, ["part", "layers", "norm", "channels", "groups", "channels per group", "trained"])


def _spread(group: list[dict]) -> list[str]:
    """Return the distinct numbers of channels, groups, and channels per group of some layers."""
    channels = sorted({row["channels"] for row in group})
    groups = sorted({row["groups"] for row in group if row["groups"]})
    sizes = sorted({row["channels"] // row["groups"] for row in group if row["groups"]})
    return [", ".join(map(str, numbers)) or "-" for numbers in (channels, groups, sizes)]


def _norms_by_layer(norms: list[dict]) -> str:
    rows = [
        [row["layer"], row["norm"], row["channels"], row["groups"], "yes" if row["trained"] else "no"] for row in norms
    ]
    return _table(rows, ["layer", "norm", "channels", "groups", "trained"])
