"""Synthetic state dicts with the names, shapes and row orders of other projects.

Names and orders are copied from the sources of these projects, independently of gn_det.

The values identify the tensor and the row: row ``r`` of tensor number ``n`` is filled with ``n *
4096 + r``. Tensors are expanded views with one number per row, so that even a ResNet-101 takes
almost no memory. The same arguments describe the same network for every project, and
:func:`detectron2_state` is what a key map must produce. ``classes`` does not count the background;
the rows that a project has for it are filled with -1.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
RATIOS, SIZES = 3, 5  # number of aspect ratios and of sizes of the anchors of C4


class Layer(NamedTuple):
    """A convolution or linear layer, with its norm. ``role`` is its name in this module."""

    role: str
    shape: tuple[int, ...]  # of the weight
    bias: bool = True
    norm: str = ""  # "gn", "affine" (BN folded to a scale and a shift), "bn" (with statistics)


# ---- networks


def resnet(depth: int, norm: str, scale: int = 1, paths: int = 1) -> Iterator[Layer]:
    """Yield the convolutions of a ResNet, with 1 / ``scale`` of the usual width.

    Args:
        paths: 32 for a ResNeXt 32x4d.
    """
    stem = 64 // scale
    yield Layer("stem.conv1", (stem, 3, 7, 7), False, norm)
    inside = stem
    for stage, blocks in enumerate(BLOCKS[depth]):
        width = stem * 2**stage
        for block in range(blocks):
            role = f"res{stage + 2}.{block}"
            if block == 0:
                yield Layer(f"{role}.shortcut", (4 * width, inside, 1, 1), False, norm)
            middle = width if paths == 1 else 2 * width
            yield Layer(f"{role}.conv1", (middle, inside, 1, 1), False, norm)
            yield Layer(f"{role}.conv2", (middle, middle // paths, 3, 3), False, norm)
            yield Layer(f"{role}.conv3", (4 * width, middle, 1, 1), False, norm)
            inside = 4 * width


def detector(
    depth: int, fpn: bool, norm: str, head: str, classes: int, masks: bool, scale: int, paths: int = 1
) -> Iterator[Layer]:
    """Yield the layers of a Faster or Mask R-CNN.

    GN is everywhere except in the RPN; other norms only in the backbone.
    """
    yield from resnet(depth, norm, scale, paths)
    dim, gn = 256 // scale, norm if norm == "gn" else ""
    rpn = dim if fpn else 1024 // scale
    anchors = RATIOS if fpn else RATIOS * SIZES
    if fpn:
        for level in (5, 4, 3, 2):
            yield Layer(f"fpn_lateral{level}", (dim, 2 ** (level + 6) // scale, 1, 1), not gn, gn)
            yield Layer(f"fpn_output{level}", (dim, dim, 3, 3), not gn, gn)
    yield Layer("rpn.conv", (rpn, rpn, 3, 3))
    yield Layer("rpn.objectness", (anchors, rpn, 1, 1))
    yield Layer("rpn.deltas", (4 * anchors, rpn, 1, 1))
    features, fc = (1024 // scale, 1024 // scale) if fpn else (2048 // scale, 0)
    if fpn:
        convs, fcs = {"4conv1fc": (4, 1), "2fc": (0, 2)}[head]
        for i in range(convs):
            yield Layer(f"box.conv{i + 1}", (dim, dim, 3, 3), not gn, gn)
        for i in range(fcs):
            yield Layer(f"box.fc{i + 1}", (fc, fc if i else dim * 7 * 7))
    yield Layer("box.cls", (classes + 1, features))
    yield Layer("box.reg", (4 * classes, features))
    if masks:
        for i in range(4 if fpn else 0):
            yield Layer(f"mask.conv{i + 1}", (dim, dim, 3, 3), not gn, gn)
        yield Layer("mask.deconv", (dim if fpn else features, dim, 2, 2))
        yield Layer("mask.predictor", (classes, dim, 1, 1))


def tensors(layers: Iterator[Layer]) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (role, parameter, tensor) for each parameter of the layers, numbered in this order."""
    number = 0
    for layer in layers:
        per_channel = ["bias"] if layer.bias else []
        if layer.norm:
            per_channel += ["norm.weight", "norm.bias"]
        if layer.norm == "bn":
            per_channel += ["norm.running_mean", "norm.running_var"]
        channels = layer.shape[1] if layer.role == "mask.deconv" else layer.shape[0]
        for parameter, shape in [("weight", layer.shape), *((name, (channels,)) for name in per_channel)]:
            yield layer.role, parameter, numbered_tensor(number, shape)
            number += 1


def numbered_tensor(number: int, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor whose values identify it by its number, and each of its rows."""
    rows = number * 4096 + torch.arange(shape[0], dtype=torch.float32)
    return rows.view(-1, *[1] * (len(shape) - 1)).expand(shape)


def with_background(tensor: Tensor, rows: int) -> Tensor:
    """Add rows of a background class, filled with -1, before the first row."""
    return torch.cat([torch.full_like(tensor[:rows], -1), tensor])


# ---- detectron2

_DETECTRON2 = {
    "rpn.conv": "proposal_generator.rpn_head.conv",
    "rpn.objectness": "proposal_generator.rpn_head.objectness_logits",
    "rpn.deltas": "proposal_generator.rpn_head.anchor_deltas",
    "box.cls": "roi_heads.box_predictor.cls_score",
    "box.reg": "roi_heads.box_predictor.bbox_pred",
    "mask.deconv": "roi_heads.mask_head.deconv",
    "mask.predictor": "roi_heads.mask_head.predictor",
    **{f"box.conv{i}": f"roi_heads.box_head.conv{i}" for i in range(1, 5)},
    **{f"box.fc{i}": f"roi_heads.box_head.fc{i}" for i in (1, 2)},
    **{f"mask.conv{i}": f"roi_heads.mask_head.mask_fcn{i}" for i in range(1, 5)},
    **{f"fpn_{kind}{i}": f"backbone.fpn_{kind}{i}" for kind in ("lateral", "output") for i in range(2, 6)},
}


def detectron2_state(
    depth: int = 50, fpn: bool = True, norm: str = "gn", head: str = "4conv1fc", classes: int = 80, masks: bool = True,
    scale: int = 1,
) -> dict[str, Tensor]:  # fmt: skip
    """Return the state dict of a detector.

    With the norm "affine", FrozenBN has the statistics of a plain affine layer.
    """

    def name(role: str) -> str:
        if role.startswith(("stem", "res")):
            return ("backbone.bottom_up." if fpn else "roi_heads." if role.startswith("res5") else "backbone.") + role
        return _DETECTRON2[role]

    layers = detector(depth, fpn, norm, head, classes, masks, scale)
    state = {f"{name(role)}.{parameter}": value for role, parameter, value in tensors(layers)}
    return _with_bn_statistics(state) if norm == "affine" else state


def detectron2_resnet(depth: int = 50, norm: str = "gn", scale: int = 1) -> dict[str, Tensor]:
    """Return the state dict of a ResNet, with the names within it as in detectron2's ImageNet files."""
    state = {f"{role}.{parameter}": value for role, parameter, value in tensors(resnet(depth, norm, scale))}
    return _with_bn_statistics(state) if norm == "affine" else state


def _with_bn_statistics(state: dict[str, Tensor]) -> dict[str, Tensor]:
    scales = {name.removesuffix("weight"): value for name, value in state.items() if name.endswith("norm.weight")}
    means = {f"{name}running_mean": torch.zeros_like(value) for name, value in scales.items()}
    return state | means | {f"{name}running_var": torch.ones_like(value) - 1e-5 for name, value in scales.items()}


# ---- Detectron


def detectron_blobs(
    depth: int = 50, fpn: bool = True, norm: str = "gn", head: str = "4conv1fc", classes: int = 80, masks: bool = True,
    scale: int = 1,
) -> dict[str, Tensor]:  # fmt: skip
    """Return the parameters of a detector.

    The background is first; C4's anchors are ordered by ratio, then size.
    """
    blobs = {}
    for role, parameter, value in tensors(detector(depth, fpn, norm, head, classes, masks, scale)):
        if role == "box.cls":
            value = torch.cat([value[-1:], value[:-1]])
        if role in ("box.reg", "mask.predictor"):
            value = with_background(value, 4 if role == "box.reg" else 1)
        if role in ("rpn.objectness", "rpn.deltas") and not fpn:
            rows = 4 if role == "rpn.deltas" else 1  # per anchor
            value = torch.cat([value[(s * RATIOS + r) * rows :][:rows] for r in range(RATIOS) for s in range(SIZES)])
        blobs[_blob(role, parameter, norm, depth, fpn)] = value
    return blobs


def detectron_imagenet(depth: int = 50, norm: str = "gn", scale: int = 1) -> dict[str, Tensor]:
    """Return an ImageNet ResNet with its classifier.

    Args:
        norm: "gn"; "affine", as in MSRA's files; or "bn", as in detectron2's copies of them, which
            have BN not folded.
    """
    layers = tensors(resnet(depth, norm, scale))
    blobs = {_blob(role, parameter, norm, depth, True): value for role, parameter, value in layers}
    return blobs | {
        f"{'pred' if norm == 'gn' else 'fc1000'}_{p}": torch.zeros(1000, *s) for p, s in (("w", [8]), ("b", []))
    }


def detectron_training(blobs: dict[str, Tensor], norm: str = "gn") -> dict[str, Tensor]:
    """Add what Detectron saves beside parameters: momentum, learning rate, unused ImageNet tensors."""
    unused = {"pred_w": torch.zeros(1000, 8), "pred_b": torch.zeros(1000)}
    if norm != "gn":
        zeros = torch.zeros(64)
        unused = {
            "fc1000_w": torch.zeros(1000, 8),
            "fc1000_b": torch.zeros(1000),
            "conv1_b": zeros,
            "res2_0_branch1_b": zeros,
        }
    return blobs | {f"{name}_momentum": value for name, value in blobs.items()} | unused | {"lr": torch.ones(1)}


def _blob(role: str, parameter: str, norm: str, depth: int, fpn: bool) -> str:
    suffix = {"weight": "w", "bias": "b"}.get(parameter) or {
        "gn": {"norm.weight": "gn_s", "norm.bias": "gn_b"},
        "affine": {"norm.weight": "bn_s", "norm.bias": "bn_b"},
        "bn": {
            "norm.weight": "bn_gamma", "norm.bias": "bn_beta",
            "norm.running_mean": "bn_running_mean", "norm.running_var": "bn_running_var",
        },
    }[norm][parameter]  # fmt: skip
    return f"{_blob_layer(role, norm if '.' in parameter else '', norm, depth, fpn)}_{suffix}"


def _blob_layer(role: str, part: str, norm: str, depth: int, fpn: bool) -> str:
    level = "_fpn2" if fpn else ""
    if role == "stem.conv1":
        return "res_conv1" if part in ("affine", "bn") else "conv1"
    if role.startswith("res"):
        stage, block, conv = role.split(".")
        branch = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}[conv]
        return f"{stage}_{block}_{branch}"
    if role.startswith("fpn"):
        stage = int(role[-1])
        top = f"res{stage}_{BLOCKS[depth][stage - 2] - 1}_sum"
        return f"fpn_{top}" if "output" in role else f"fpn_inner_{top}{'' if stage == 5 else '_lateral'}"
    return {
        "rpn.conv": f"conv_rpn{level}",
        "rpn.objectness": f"rpn_cls_logits{level}",
        "rpn.deltas": f"rpn_bbox_pred{level}",
        "box.fc1": "fc6",
        "box.fc2": "fc7",
        "box.cls": "cls_score",
        "box.reg": "bbox_pred",
        "mask.deconv": "conv5_mask",
        "mask.predictor": "mask_fcn_logits",
        **{f"box.conv{i}": f"head_conv{i}" for i in range(1, 5)},
        **{f"mask.conv{i}": f"{'_mask' if norm == 'gn' else '_[mask]'}_fcn{i}" for i in range(1, 5)},
    }[role]


# ---- mmdetection


def mmdet_state(
    version: int, depth: int = 50, norm: str = "gn", head: str = "4conv1fc", classes: int = 80, masks: bool = True,
    scale: int = 1, paths: int = 1,
) -> dict[str, Tensor]:  # fmt: skip
    """Return the state dict of a detector with FPN.

    Args:
        version: 1, where the background is the first class; or 2, where it is the last and has no
            boxes and masks.
        paths: 32 for a ResNeXt 32x4d.
    """
    state = {}
    for role, parameter, value in tensors(detector(depth, True, norm, head, classes, masks, scale, paths)):
        if version == 1 and role == "box.cls":
            value = torch.cat([value[-1:], value[:-1]])
        if version == 1 and role in ("box.reg", "mask.predictor"):
            value = with_background(value, 4 if role == "box.reg" else 1)
        if role.startswith(("stem", "res")):
            state[f"backbone.{_mmdet_resnet(role, parameter, norm)}"] = value
        else:
            state[
                ("roi_head." if version == 2 and role.startswith(("box", "mask")) else "") + _mmdet(role, parameter)
            ] = value
    statistics = [name.removesuffix("running_var") for name in state if name.endswith("running_var")]
    return state | {f"{name}num_batches_tracked": torch.tensor(7) for name in statistics}


def mmdet_backbone(depth: int = 50, norm: str = "gn", scale: int = 1) -> dict[str, Tensor]:
    """Return an ImageNet ResNet from which mmdetection's configs start."""
    layers = tensors(resnet(depth, norm, scale))
    return {_mmdet_resnet(role, parameter, norm): value for role, parameter, value in layers}


def _mmdet_resnet(role: str, parameter: str, norm: str) -> str:
    parameter, normed = parameter.removeprefix("norm."), parameter.startswith("norm.")
    if role == "stem.conv1":
        return f"{norm}1.{parameter}" if normed else f"conv1.{parameter}"
    stage, block, conv = role.split(".")
    layer = f"layer{int(stage[3:]) - 1}.{block}"
    if conv == "shortcut":
        return f"{layer}.downsample.{1 if normed else 0}.{parameter}"
    return f"{layer}.{norm if normed else 'conv'}{conv[-1]}.{parameter}"


def _mmdet(role: str, parameter: str) -> str:
    parameter, normed = parameter.removeprefix("norm."), parameter.startswith("norm.")
    number = int(role[-1]) if role[-1].isdigit() else 0
    modules = {"box.conv": "bbox_head.shared_convs", "mask.conv": "mask_head.convs"}
    modules |= {"fpn_lateral": "neck.lateral_convs", "fpn_output": "neck.fpn_convs"}
    if module := modules.get(role.rstrip("12345")):
        return f"{module}.{number - (2 if 'fpn' in role else 1)}.{'gn' if normed else 'conv'}.{parameter}"
    plain = {
        "rpn.conv": "rpn_head.rpn_conv",
        "rpn.objectness": "rpn_head.rpn_cls",
        "rpn.deltas": "rpn_head.rpn_reg",
        "box.fc1": "bbox_head.shared_fcs.0",
        "box.fc2": "bbox_head.shared_fcs.1",
        "box.cls": "bbox_head.fc_cls",
        "box.reg": "bbox_head.fc_reg",
        "mask.deconv": "mask_head.upsample",
        "mask.predictor": "mask_head.conv_logits",
    }
    return f"{plain[role]}.{parameter}"


# ---- torchvision, timm, GroupNorm-reproduce


def torchvision_model(norm: str = "bn", depth: int = 50) -> nn.Module:
    """Return a ResNet of torchvision. With GN its names are also timm's."""
    layer = partial(nn.GroupNorm, 32) if norm == "gn" else None
    return getattr(torchvision.models, f"resnet{depth}")(norm_layer=layer)


def torchvision_resnet50() -> dict[str, Tensor]:
    return _numbered(torchvision_model())


def timm_resnet50_gn() -> dict[str, Tensor]:
    return _numbered(torchvision_model("gn"))


def group_norm_reproduce(depth: int = 50) -> dict[str, Tensor]:
    """Return the state dict of a ResNet of GroupNorm-reproduce, which saves models in DataParallel."""
    return {f"module.{name}": value for name, value in _numbered(torchvision_model("gn", depth)).items()}


def _numbered(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a model, with its values replaced by those of :func:`numbered_tensor`."""
    state = model.state_dict()
    return {
        name: numbered_tensor(i, value.shape) if value.dim() else value for i, (name, value) in enumerate(state.items())
    }
