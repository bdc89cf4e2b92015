"""Convert weights of Detectron (Caffe2) to detectron2's names.

The names are from Detectron's sources, detectron/modeling/ and utils/net.py. The file of a detector
also contains the tensors of its ImageNet file that the detector does not use: the classifier, and
biases of convolutions to which Detectron gives no bias.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .mapping import FOLDED, Converted, KeyMap, any_starts, apply, background_to_end, without_background

ORIGIN = "Detectron"
_PARAMETERS = {
    "w": "weight",
    "b": "bias",
    "gn_s": "norm.weight",
    "gn_b": "norm.bias",
    "bn_s": "norm.weight",
    "bn_b": "norm.bias",
    # In detectron2's copies of the MSRA files, BN is not folded into a scale and a shift, and has
    # these names.
    "bn_gamma": "norm.weight",
    "bn_beta": "norm.bias",
    "bn_running_mean": "norm.running_mean",
    "bn_running_var": "norm.running_var",
}
_RESNET = (
    (r"(?:res_)?conv1", "stem.conv1"),
    (r"res(\d)_(\d+)_branch1", r"res\1.\2.shortcut"),
    (r"res(\d)_(\d+)_branch2a", r"res\1.\2.conv1"),
    (r"res(\d)_(\d+)_branch2b", r"res\1.\2.conv2"),
    (r"res(\d)_(\d+)_branch2c", r"res\1.\2.conv3"),
)
_DETECTOR = (
    (r"fpn_inner_res(\d)_\d+_sum(?:_lateral)?", r"backbone.fpn_lateral\1"),
    (r"fpn_res(\d)_\d+_sum", r"backbone.fpn_output\1"),
    # With FPN, the layers of the RPN are shared by all levels and named after level 2.
    (r"conv_rpn(?:_fpn2)?", "proposal_generator.rpn_head.conv"),
    (r"rpn_cls_logits(?:_fpn2)?", "proposal_generator.rpn_head.objectness_logits"),
    (r"rpn_bbox_pred(?:_fpn2)?", "proposal_generator.rpn_head.anchor_deltas"),
    (r"head_conv(\d+)", r"roi_heads.box_head.conv\1"),
    (r"fc6", "roi_heads.box_head.fc1"),
    (r"fc7", "roi_heads.box_head.fc2"),
    (r"cls_score", "roi_heads.box_predictor.cls_score"),
    (r"bbox_pred", "roi_heads.box_predictor.bbox_pred"),
    (r"_(?:\[mask\]|mask)_fcn(\d+)", r"roi_heads.mask_head.mask_fcn\1"),
    (r"conv5_mask", "roi_heads.mask_head.deconv"),
    (r"mask_fcn_logits", "roi_heads.mask_head.predictor"),
)
_ASPECT_RATIOS = 3  # per anchor size: Detectron's default, which none of its configs changes


def from_detectron(blobs: Mapping[str, Tensor]) -> Converted:
    """Convert the weights of an ImageNet ResNet, or of a Faster or Mask R-CNN with FPN or C4.

    The background class moves from the first row to the last, and its rows of boxes and masks are
    removed. The anchors of a C4 model are reordered, which detectron2's own conversion does not do.
    BN that is folded into a scale and a shift gets the running statistics with which detectron2's
    FrozenBatchNorm2d computes exactly this scale and shift.

    Args:
        blobs: {Detectron's name: tensor}.

    Raises:
        GNDetError: a tensor has an impossible shape.
    """
    has_fpn, detector = any_starts(blobs, "fpn_"), any(_layer(name, _DETECTOR) for name in blobs)
    prefix = "" if not detector else "backbone.bottom_up." if has_fpn else "backbone."

    def rename(blob: str) -> str | None:
        _, parameter = _split(blob)
        if name := _layer(blob, _RESNET):
            head = "roi_heads." if detector and not has_fpn and name.startswith("res5") else prefix
            return f"{head}{name}.{_PARAMETERS[parameter]}"
        name = _layer(blob, _DETECTOR)
        return f"{name}.{_PARAMETERS[parameter]}" if name else None

    return _add_bn_statistics(apply(KeyMap(rename, _why_dropped, _reorder_rows), blobs, ORIGIN, not detector))


def _split(blob: str) -> tuple[str, str]:
    """Split a name into layer and parameter. Return two empty strings if the parameter is unknown."""
    match = re.fullmatch(rf"(.+?)_({'|'.join(_PARAMETERS)})", blob)
    return (match[1], match[2]) if match else ("", "")


def _layer(blob: str, table: tuple[tuple[str, str], ...]) -> str:
    """Return detectron2's name of the layer of a blob, or "" if the table does not contain it."""
    layer = _split(blob)[0]
    return next((match.expand(name) for pattern, name in table if (match := re.fullmatch(pattern, layer))), "")


def _why_dropped(blob: str) -> str:
    if blob.endswith("_momentum"):
        return "optimizer momentum"
    if blob == "lr":
        return "learning rate"
    if re.fullmatch(r"(pred|fc1000)_[wb]", blob):
        return "ImageNet classifier"
    if _split(blob)[1] == "b" and _layer(blob, _RESNET):
        return "bias of a convolution that Detectron uses without a bias"
    return ""


def _reorder_rows(blob: str, name: str, tensor: Tensor) -> Tensor:
    if blob.startswith("cls_score_"):
        return background_to_end(tensor)
    if blob.startswith("bbox_pred_"):
        return without_background(tensor, 4)
    if blob.startswith("mask_fcn_logits_"):
        return without_background(tensor, 1)
    if re.match(r"rpn_(cls_logits|bbox_pred)_[wb]", blob):
        return _anchors_by_size(tensor, 4 if "bbox" in blob else 1)
    return tensor


def _anchors_by_size(tensor: Tensor, rows: int) -> Tensor:
    """Reorder anchors of ``rows`` rows each: (ratios * sizes * rows, ...) -> (sizes * ratios * rows, ...).

    Detectron's generate_anchors.py iterates over the aspect ratios and, within each, over the
    sizes; detectron2's DefaultAnchorGenerator does the reverse. With FPN, a level has one size and
    the order does not change.
    """
    return tensor.reshape(_ASPECT_RATIOS, -1, rows, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


def _add_bn_statistics(converted: Converted) -> Converted:
    """Add running statistics to BN that is folded into a scale and a shift.

    FrozenBatchNorm2d computes weight / sqrt(running_var + 1e-5) * (x - running_mean) + bias, which
    is weight * x + bias for a running_mean of 0 and a running_var of 1 - 1e-5.
    """
    for name, source in list(converted.sources.items()):
        mean, var = (name.removesuffix("weight") + statistic for statistic in ("running_mean", "running_var"))
        if source.endswith("_bn_s") and mean not in converted.weights:
            zeros = torch.zeros_like(converted.weights[name])
            converted.weights.update({mean: zeros, var: zeros + (1 - 1e-5)})
            converted.sources.update({mean: FOLDED, var: FOLDED})
    return converted
