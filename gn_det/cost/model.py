"""What a model costs, by part: parameters, FLOPs, activations, memory of a training step; and the norm of every layer.

FLOPs and activations are fvcore's, for one image in inference: one multiply-add is one FLOP, and activations are the
elements that convolutions and fc layers put out. The model runs on the CPU to count them.

Memory is measured by running a training step, forward and backward, on PyTorch's meta device, where tensors have sizes
and no values: the bytes of all storages that are alive at once, each counted once, in float32.

The heads get as many RoIs as the config allows, since a model with random weights would propose an arbitrary number.
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
from .memory import inference, training_step
from .parts import RCNNParts

_ASPECT = 4 / 3  # of most photographs, COCO's among them
_MOST_PIXELS = 3000 * 4000  # counting takes about 0.5 KB of memory a pixel
_SKIPPED = "not counted: "


def _skip(name: str, inputs: list, outputs: list) -> Counter[str]:
    """Counts elements apart from FLOPs, so that what fvcore ignores can be said."""
    return Counter({_SKIPPED + name: math.prod(get_shape(outputs[0]))})


def _roi_align(inputs: list, outputs: list) -> Counter[str]:
    """Four multiply-adds for each bilinear sample, of which a cell has sampling_ratio^2."""
    ratio = inputs[5].toIValue()
    if ratio <= 0:  # then their number goes with the size of the RoI
        return _skip("roi_align", inputs, outputs)
    return Counter({"roi_align": 4 * ratio**2 * math.prod(get_shape(outputs[0]))})


# What fvcore has no handle for, or ignores.
_HANDLES: dict[str, Callable | None] = {
    f"aten::{n}": partial(_skip, n.rstrip("_")) for n in ("add", "add_", "max_pool2d", "mul", "relu", "relu_")
}
_HANDLES |= {"torchvision::roi_align": _roi_align, "aten::mean": elementwise_flop_counter(1, 0)}
_HANDLES |= {"aten::linspace": None}  # makes the RoIs
_SCRIPTED = {"prim::CallFunction": "choice of an RoI's level"}  # the only scripted functions in the parts


def image_size(cfg: CfgNode, text: str | None = None) -> tuple[int, int]:
    """(height, width) in pixels of ``HEIGHTxWIDTH``, or of a short side with the long one a third longer.

    Without a text the short side is ``INPUT.MIN_SIZE_TEST``, and ``MAX_SIZE_TEST`` bounds the long one.

    Raises:
        GNDetError: it is neither, or more than 12 million pixels.
    """
    if text is None:
        short = cfg.INPUT.MIN_SIZE_TEST or 800  # 0: images stay as they are
        height, width = short, min(round(short * _ASPECT), cfg.INPUT.MAX_SIZE_TEST)
    elif match := re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip()):
        height = int(match[1])
        width = int(match[2]) if match[2] else round(height * _ASPECT)
    else:
        raise GNDetError(f"--size is {text!r}; it is HEIGHTxWIDTH in pixels (800x1216), or the short side (800).")
    if min(height, width) < 32 or height * width > _MOST_PIXELS:
        raise GNDetError(f"--size is {height} x {width} pixels; it is from 32 pixels a side to 12 million in all.")
    return height, width


def analyze(cfg: CfgNode, size: tuple[int, int], batches: tuple[int, ...] = (1, 2, 4, 8)) -> dict:
    """All that is said of a model. Weights are random and none are read.

    Args:
        size: (height, width) of an image as the model gets it, before it is padded.
        batches: images a GPU, for the memory of a training step; "kept" is of the first.

    Returns:
        {"config", "size", "padded", "classes", "rois": {"inference", "detections", "training", "training_masks"},
        "parts": [{"part", "parameters", "trained", "flops", "activations" (elements), "kept" (bytes)}, ...],
        "flops_by_operator": {name: FLOPs}, "not_counted": {name: elements, or None where unknown},
        "memory": {"inference": bytes, "training": [{"images", "weights", "gradients", "optimizer", "kept", "peak"}]},
        "norms": [{"layer", "part", "norm", "channels", "groups" (None for BN), "trained"}, ...]}.

    Raises:
        GNDetError: the config cannot work, or the model is not an R-CNN that can be taken apart.
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
    none = {"parameters": 0, "trained": 0, "flops": 0, "activations": 0}
    names = ("images", *counts, "other")
    rows = [{"part": n, **none, **parameters.get(n, {}), **counts.get(n, {}), "kept": kept[n]} for n in names]
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
    if cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        raise GNDetError(f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; only GeneralizedRCNN is analysed.")
    with quiet():
        return build_model(cfg)


def _padded(model: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    backbone: Any = model.backbone
    divisor = max(backbone.size_divisibility, 1)
    height, width = (math.ceil(side / divisor) * divisor for side in size)
    return height, width


def _part_of(model: nn.Module) -> dict[nn.Module, str]:
    """The part that each module of the model belongs to."""
    parts = RCNNParts(model, 1, 1)
    part_of = dict.fromkeys(model.modules(), "other")
    for part, name in reversed(parts.parts().items()):  # inner parts stand before the outer ones, and win
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
    own = list(module.parameters(recurse=False))
    trained = bool(own) and all(parameter.requires_grad for parameter in own)
    return {
        "layer": name,
        "part": part,
        "norm": norm_name(module),
        "channels": channels,
        "groups": groups,
        "trained": trained,
    }


def _count(model: nn.Module, size: tuple[int, int], rois: dict[str, int]) -> tuple[dict, dict, dict]:
    """FLOPs and activations by part, FLOPs by operator, and what was not counted.

    The heads are run on one RoI and multiplied: each of their layers costs the same for every RoI.
    """
    parts, images = RCNNParts(model, 1, 1).eval(), torch.zeros(1, 3, *size)
    times = {"box head": rois["inference"], "mask head": rois["detections"]}
    flops = FlopCountAnalysis(parts, images).set_op_handle(**_HANDLES)
    adapter = TracingAdapter(parts, images)
    elements = ActivationCountAnalysis(adapter, adapter.flattened_inputs)
    counts: dict[str, dict[str, int]] = {}
    operators: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for part, by_operator in _by_part(parts, flops).items():
        for name, number in by_operator.items():
            (skipped if name.startswith(_SKIPPED) else operators)[name] += int(number) * times.get(part, 1)
        number = sum(n for name, n in by_operator.items() if not name.startswith(_SKIPPED))
        counts[part] = {"flops": int(number) * times.get(part, 1)}
    for part, by_operator in _by_part(parts, elements).items():
        counts[part]["activations"] = int(sum(by_operator.values())) * times.get(part, 1)
    not_counted = {name.removeprefix(_SKIPPED): number for name, number in skipped.most_common()}
    not_counted |= {_SCRIPTED.get(name, name): None for name in flops.unsupported_ops()}
    return counts, dict(operators.most_common()), not_counted


def _by_part(parts: RCNNParts, analysis: JitModelAnalysis) -> dict[str, Counter]:
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).ancestor_mode("caller")
    with quiet():
        by_module = analysis.by_module_and_operator()
    names = parts.parts()
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
    parts = RCNNParts(model, rois["training"], rois["training_masks"])
    steps = [training_step(parts, (images, 3, *size), momentum) for images in batches]
    rows = [{"images": n, **step, "kept": sum(step["kept"].values())} for n, step in zip(batches, steps, strict=True)]
    whole = RCNNParts(model, rois["inference"], rois["detections"])
    return {"inference": inference(whole, (1, 3, *size)), "training": rows}, steps[0]["kept"]
