"""The result of an analysis as text that fits 100 columns."""

from collections import Counter
from textwrap import fill

from tabulate import tabulate

_MIB, _GIB = 2**20, 2**30
_WIDTH = 100  # characters
_MARGIN = (
    "Not in it: the GPU's context, workspaces of cuDNN, losses, and with several GPUs a second copy of the gradients. "
    "detectron2's model zoo measured 9 to 25 % more for such models, so leave a quarter free."
)


def format_analysis(result: dict, by_layer: bool = False) -> str:
    """Tables of what :func:`gn_det.cost.model.analyze` returns.

    Args:
        by_layer: list every norm layer, and not those of a part that are alike in one line.
    """
    size, padded, rois = result["size"], result["padded"], result["rois"]
    title = f"{result['config'] or 'This model'}, {result['classes']} classes, an image of {size[0]} x {size[1]} pixels"
    title += f" (padded to {padded[0]} x {padded[1]})" if size != padded else ""
    norms = _norms_by_layer(result["norms"]) if by_layer else _norms_table(result)
    blocks = [
        title,
        _parts_table(result),
        _parts_notes(result),
        f"Memory of a training step in GiB, with {rois['training']} RoIs and {rois['training_masks']} masks an image:",
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
    runs = {"box head": f", {rois['inference']} RoIs", "mask head": f", {rois['detections']} RoIs"}
    rows = []
    for part in parts:
        kinds = Counter(row["norm"] for row in result["norms"] if row["part"] == part["part"])
        norms = ", ".join(f"{number} {norm}" for norm, number in kinds.items())
        rows.append([part["part"] + runs.get(part["part"], ""), *(part[k] / unit for k, unit in keys.items()), norms])
    total = [sum(part[key] for part in parts) / unit for key, unit in keys.items()]
    rows.append(["total", *total, f"{len(result['norms'])} norms"])
    headers = ["part", "params M", "trained M", "GFLOPs", "acts M", "kept MiB", "norms"]
    return _table(rows, headers, ("", ".2f", ".2f", ".1f", ".1f", ".0f", ""))


def _parts_notes(result: dict) -> str:
    flops = ", ".join(f"{name} {number / 1e9:.2f}" for name, number in result["flops_by_operator"].items())
    skipped = [
        f"{name} ({number / 1e6:.0f} M elements)" if number and number > 1e6 else name
        for name, number in result["not_counted"].items()
    ]
    images = result["memory"]["training"][0]["images"]
    lines = [
        f"GFLOPs: one image in inference, a multiply-add as one FLOP (fvcore): {flops}.",
        f"not counted: {', '.join(skipped)}, choice of proposals, NMS, pasting of masks.",
        "acts: activations, elements that convolutions and fc layers put out, one image in inference (fvcore).",
        f"kept: what the forward pass of training keeps for backward, {images} image{'s' * (images > 1)}.",
    ]
    return "\n".join(fill(line, _WIDTH, subsequent_indent="  ") for line in lines)


def _memory_notes(inference: int) -> str:
    text = f"Inference on one image: {inference / _GIB:.2f} GiB. All in float32. {_MARGIN}"
    return fill(text, _WIDTH)


def _memory_table(steps: list[dict]) -> str:
    keys = ("weights", "gradients", "optimizer", "kept", "peak")
    rows = [[step["images"], *(step[key] / _GIB for key in keys)] for step in steps]
    headers = ["images a GPU", "weights", "gradients", "momentum", "kept for backward", "peak of all"]
    return _table(rows, headers)


def _norms_table(result: dict) -> str:
    """One line for the norms of a part that are of one kind, both trained or both frozen."""
    order = [part["part"] for part in result["parts"]]
    alike: dict[tuple, list[dict]] = {}
    for row in sorted(result["norms"], key=lambda row: order.index(row["part"])):
        alike.setdefault((row["part"], row["norm"], row["trained"]), []).append(row)
    rows = [
        [part, len(group), norm, *_spread(group), "yes" if trained else "no"]
        for (part, norm, trained), group in alike.items()
    ]
    return _table(rows, ["part", "layers", "norm", "channels", "groups", "channels a group", "trained"])


def _spread(group: list[dict]) -> list[str]:
    channels = sorted({row["channels"] for row in group})
    groups = sorted({row["groups"] for row in group if row["groups"]})
    sizes = sorted({row["channels"] // row["groups"] for row in group if row["groups"]})
    return [", ".join(map(str, numbers)) or "-" for numbers in (channels, groups, sizes)]


def _norms_by_layer(norms: list[dict]) -> str:
    rows = [
        [row["layer"], row["norm"], row["channels"], row["groups"], "yes" if row["trained"] else "no"] for row in norms
    ]
    return _table(rows, ["layer", "norm", "channels", "groups", "trained"])
