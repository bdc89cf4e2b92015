"""Count a model's parameters, FLOPs, activations, and memory by part, and list its normalization layers.

FLOPs and activations are counted by fvcore for one image in inference, on the CPU. One multiply-add is
one FLOP. Activations are the output elements of convolutions and fc layers.

Memory is measured by running a training step (forward and backward, in float32) on PyTorch's meta device,
where tensors have sizes but no values. It is the number of bytes of all storages that are alive at the
same time; shared storages count once.

The heads get the maximum number of RoIs that the config allows, because a model with random weights would
propose an arbitrary number.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.export import TracingAdapter
from detectron2.modeling import build_model
from detectron2.utils.analysis import FlopCountAnalysis
from fvcore.nn import ActivationCountAnalysis
from fvcore.nn.jit_analysis import JitModelAnalysis
from fvcore.nn.jit_handles import elementwise_flop_counter, get_shape
from torch import nn

from ..acceleration.training import checkpoint_activations
from ..config.checks import check_config
from ..errors import GNDetError
from ..modeling.norm import is_norm, norm_name
from ..quiet import quiet
from .memory import inference_memory, training_memory
from .parts import RCNNParts

_ASPECT_RATIO = 4 / 3  # of most photographs, including those of COCO
_MAX_PIXELS = 3000 * 4000  # counting takes about 0.5 KB of memory per pixel
_NOT_COUNTED = "not counted: "  # prefix of operators whose elements, not FLOPs, are counted


def _count_elements(name: str, inputs: list, outputs: list) -> Counter[str]:
    """Count output elements apart from the FLOPs, to report operators that fvcore ignores."""
    return Counter({_NOT_COUNTED + name: math.prod(get_shape(outputs[0]))})


def _roi_align(inputs: list, outputs: list) -> Counter[str]:
    """Count four multiply-adds per bilinear sample. An output cell has sampling_ratio^2 samples."""
    ratio = inputs[5].toIValue()
    if ratio <= 0:  # the number of samples depends on the size of the RoI
        return _count_elements("roi_align", inputs, outputs)
    return Counter({"roi_align": 4 * ratio**2 * math.prod(get_shape(outputs[0]))})


# Handles for operators that fvcore does not support or ignores.
_HANDLES: dict[str, Callable | None] = {
    f"aten::{n}": partial(_count_elements, n.rstrip("_")) for n in ("add", "add_", "max_pool2d", "mul", "relu", "relu_")
}
_HANDLES |= {"torchvision::roi_align": _roi_align, "aten::mean": elementwise_flop_counter(1, 0)}
_HANDLES |= {"aten::linspace": None}  # creates the RoIs
_SCRIPTED = {"prim::CallFunction": "assignment of RoIs to levels"}  # the only scripted functions in the parts


def image_size(cfg: CfgNode, text: str | None = None) -> tuple[int, int]:
    """Return (height, width) from a text such as ``800x1216``, or by default from the config.

    Args:
        text: ``HEIGHTxWIDTH`` in pixels, or the short side; the long side is then a third longer. By
            default, the short side is ``INPUT.MIN_SIZE_TEST``, and the long side is at most
            ``INPUT.MAX_SIZE_TEST``.

    Returns:
        (height, width) in pixels.

    Raises:
        GNDetError: the text has another form, a side is below 32 pixels, or the image has more than 12
            million pixels.
    """
    if text is None:
        short = cfg.INPUT.MIN_SIZE_TEST or 800  # 0 means that images are not resized
        height, width = short, min(round(short * _ASPECT_RATIO), cfg.INPUT.MAX_SIZE_TEST)
    elif match := re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip()):
        height = int(match[1])
        width = int(match[2]) if match[2] else round(height * _ASPECT_RATIO)
    else:
        raise GNDetError(f"--size is {text!r}; it must be HEIGHTxWIDTH in pixels (800x1216) or the short side (800).")
    if min(height, width) < 32 or height * width > _MAX_PIXELS:
        raise GNDetError(
            f"--size is {height} x {width} pixels; each side must be at least 32 pixels, and the area at most 12 million "
            "pixels."
        )
    return height, width


def analyze(cfg: CfgNode, size: tuple[int, int], batches: tuple[int, ...] = (1, 2, 4, 8)) -> dict:
    """Build the model of a config with random weights and measure what it costs.

    Args:
        size: (height, width) of an image at the model's input, before padding.
        batches: the numbers of images per GPU for which the memory of a training step is measured.

    Returns:
        A dict with these keys.

        - ``"config"``: name of the config
        - ``"size"``: [height, width] of the image in pixels
        - ``"padded"``: [height, width] after padding in pixels
        - ``"classes"``: number of classes
        - ``"rois"``: dict of the numbers of RoIs per image (see below)
        - ``"parts"``: list with a dict per part (see below)
        - ``"flops_by_operator"``: {operator: FLOPs} of one image in inference
        - ``"not_counted"``: {operator: output elements, or None if unknown} of operators without FLOPs
        - ``"memory"``: dict of the memory in bytes (see below)
        - ``"norms"``: list with a dict per normalization layer (see below)

        The dict ``"rois"``:

        - ``"inference"``: RoIs of the box head in inference
        - ``"detections"``: RoIs of the mask head in inference
        - ``"training"``: RoIs of the box head in training
        - ``"training_masks"``: RoIs of the mask head in training

        Each dict in ``"parts"``:

        - ``"part"``: name of the part, such as "backbone res2"
        - ``"parameters"``: number of parameters
        - ``"trained"``: number of parameters that are not frozen
        - ``"flops"``: FLOPs of one image in inference
        - ``"activations"``: output elements of convolutions and fc layers, of one image in inference
        - ``"kept"``: bytes that the training forward pass keeps for backward, at the first batch size

        The dict ``"memory"``:

        - ``"inference"``: peak bytes in use for one image, including the weights
        - ``"training"``: list with a dict per entry of ``batches`` (see below)

        Each dict in ``"training"``:

        - ``"images"``: number of images per GPU
        - ``"weights"``: bytes of parameters and buffers
        - ``"gradients"``: bytes of the gradients
        - ``"optimizer"``: bytes of the optimizer's state
        - ``"kept"``: bytes that the forward pass keeps for backward
        - ``"peak"``: peak bytes in use, including all of the above

        Each dict in ``"norms"``:

        - ``"layer"``: name of the module
        - ``"part"``: the part that contains it
        - ``"norm"``: type of normalization, such as "GN"
        - ``"channels"``: number of channels
        - ``"groups"``: number of groups, or None for BN
        - ``"trained"``: whether its parameters are trained

    Raises:
        GNDetError: the config is invalid, or the model is not an R-CNN that can be split into parts.
    """
    model = _build(cfg)
    heads = cfg.MODEL.ROI_HEADS
    rois = {
        "inference": cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
        "detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        "training": heads.BATCH_SIZE_PER_IMAGE,
        "training_masks": int(heads.BATCH_SIZE_PER_IMAGE * heads.POSITIVE_FRACTION),
    }
    padded = _padded(model, size)
    counts, operators, not_counted = _count(model, padded, rois)
    part_of = _part_of(model)
    norms = [_norm_row(name, m, part_of[m]) for name, m in model.named_modules() if is_norm(m)]
    parameters = _parameters(model, part_of)
    if cfg.TRAIN.CHECKPOINT_ACTIVATIONS:
        checkpoint_activations(model)
    memory, kept = _memory(model.to("meta"), padded, rois, batches, momentum=cfg.SOLVER.MOMENTUM > 0)
    zeros = {"parameters": 0, "trained": 0, "flops": 0, "activations": 0}
    names = ("images", *counts, "other")
    rows = [{"part": n, **zeros, **parameters.get(n, {}), **counts.get(n, {}), "kept": kept[n]} for n in names]
    return {
        "config": cfg.MODEL.GN.CONFIG,
        "size": list(size),
        "padded": list(padded),
        "classes": heads.NUM_CLASSES,
        "rois": rois,
        "parts": [row for row in rows if row["parameters"] or row["flops"] or row["kept"]],
        "flops_by_operator": operators,
        "not_counted": not_counted,
        "memory": memory,
        "norms": norms,
    }


def _build(cfg: CfgNode) -> nn.Module:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.DATASETS.TEST = "cpu", ()
    check_config(cfg, has_checkpoint=True, eval_only=True)
    with quiet():
        return build_model(cfg)


def _padded(model: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    backbone: Any = model.backbone
    divisor = max(backbone.size_divisibility, 1)
    height, width = (math.ceil(side / divisor) * divisor for side in size)
    return height, width


def _part_of(model: nn.Module) -> dict[nn.Module, str]:
    """Return {module: name of the part that contains it}, with the innermost of nested parts."""
    parts = RCNNParts(model, 1, 1)
    part_of = dict.fromkeys(model.modules(), "other")
    for part, name in reversed(parts.module_names().items()):  # outer parts first, so that inner ones overwrite them
        part_of |= dict.fromkeys(parts.get_submodule(name).modules(), part)
    return part_of


def _parameters(model: nn.Module, part_of: dict[nn.Module, str]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    seen: set[nn.Parameter] = set()
    for module, part in part_of.items():
        for parameter in set(module.parameters(recurse=False)) - seen:
            seen.add(parameter)
            row = counts.setdefault(part, {"parameters": 0, "trained": 0})
            row["parameters"] += parameter.numel()
            row["trained"] += parameter.numel() * parameter.requires_grad
    return counts


def _norm_row(name: str, module: Any, part: str) -> dict:
    groups = getattr(module, "num_groups", None)
    channels = getattr(module, "num_channels", None) or getattr(module, "num_features", None) or module.weight.numel()
    parameters = list(module.parameters(recurse=False))
    trained = bool(parameters) and all(parameter.requires_grad for parameter in parameters)
    return {
        "layer": name,
        "part": part,
        "norm": norm_name(module),
        "channels": channels,
        "groups": groups,
        "trained": trained,
    }


def _count(model: nn.Module, size: tuple[int, int], rois: dict[str, int]) -> tuple[dict, dict, dict]:
    """Count FLOPs and activations of one image in inference.

    The heads run on one RoI, and the result is multiplied by the number of RoIs, because each layer costs
    the same for every RoI.

    Returns:
        {part: {"flops", "activations"}}; {operator: FLOPs}; and {operator: output elements, or None if
        unknown} for operators without FLOPs.
    """
    parts, images = RCNNParts(model, 1, 1).eval(), torch.zeros(1, 3, *size)
    roi_counts = {"box head": rois["inference"], "mask head": rois["detections"]}
    flops = FlopCountAnalysis(parts, images).set_op_handle(**_HANDLES)
    adapter = TracingAdapter(parts, images)
    elements = ActivationCountAnalysis(adapter, adapter.flattened_inputs)
    counts: dict[str, dict[str, int]] = {}
    operators: Counter[str] = Counter()
    uncounted: Counter[str] = Counter()
    for part, by_operator in _by_part(parts, flops).items():
        for name, number in by_operator.items():
            (uncounted if name.startswith(_NOT_COUNTED) else operators)[name] += int(number) * roi_counts.get(part, 1)
        number = sum(n for name, n in by_operator.items() if not name.startswith(_NOT_COUNTED))
        counts[part] = {"flops": int(number) * roi_counts.get(part, 1)}
    for part, by_operator in _by_part(parts, elements).items():
        counts[part]["activations"] = int(sum(by_operator.values())) * roi_counts.get(part, 1)
    not_counted = {name.removeprefix(_NOT_COUNTED): number for name, number in uncounted.most_common()}
    not_counted |= {_SCRIPTED.get(name, name): None for name in flops.unsupported_ops()}
    return counts, dict(operators.most_common()), not_counted


def _by_part(parts: RCNNParts, analysis: JitModelAnalysis) -> dict[str, Counter]:
    """Return {part: {operator: count}}. The counts of an outer part exclude the parts that it contains."""
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).ancestor_mode("caller")
    with quiet():
        by_module = analysis.by_module_and_operator()
    names = parts.module_names()
    counts = {}
    for part, name in names.items():
        counts[part] = Counter(by_module[f"model.{name}"])
        for inner in names.values():
            if inner.startswith(f"{name}."):
                counts[part].subtract(by_module[f"model.{inner}"])
    return counts


def _memory(
    model: nn.Module, size: tuple[int, int], rois: dict[str, int], batches: tuple[int, ...], momentum: bool
) -> tuple[dict, Counter]:
    """Return the value of :func:`analyze`'s key "memory", and {part: kept bytes} at the first batch size."""
    parts = RCNNParts(model, rois["training"], rois["training_masks"])
    steps = [training_memory(parts, (images, 3, *size), momentum) for images in batches]
    rows = [{"images": n, **step, "kept": sum(step["kept"].values())} for n, step in zip(batches, steps, strict=True)]
    parts = RCNNParts(model, rois["inference"], rois["detections"])
    return {"inference": inference_memory(parts, (1, 3, *size)), "training": rows}, steps[0]["kept"]
