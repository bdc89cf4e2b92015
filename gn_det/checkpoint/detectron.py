"""Detectron's (Caffe2's) names -> detectron2's.

From its sources: detectron/modeling/ and utils/net.py. A file of a detector also keeps what its ImageNet file had and it
did not use: the classifier, and biases of convolutions that Detectron reads without one.
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
    # detectron2's own copies of the MSRA files have BN unfolded, under these names.
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
    # With FPN the RPN's layers are named after level 2 and shared by all.
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
_ASPECT_RATIOS = 3  # Detectron's default, in all of its configs


def from_detectron(blobs: Mapping[str, Tensor]) -> Converted:
    """Weights of Detectron's, of an ImageNet ResNet or of a Faster or Mask R-CNN with FPN or C4.

    The background class moves from the first place to the last, and its rows of boxes and masks go. The anchors of a C4
    model change places too, which detectron2's own conversion leaves out. BN that is folded to a scale and a shift gets
    the statistics with which detectron2's frozen BN is just that.
    """
    has_fpn, detector = any_starts(blobs, "fpn_"), any(_layer(name, _DETECTOR) for name in blobs)
    prefix = "" if not detector else "backbone.bottom_up." if has_fpn else "backbone."

    def rename(blob: str) -> str | None:
        layer, _, parameter = _split(blob)
        if name := _layer(blob, _RESNET):
            head = "roi_heads." if detector and not has_fpn and name.startswith("res5") else prefix
            return f"{head}{name}.{_PARAMETERS[parameter]}"
        name = _layer(blob, _DETECTOR)
        return f"{name}.{_PARAMETERS[parameter]}" if name else None

    return _with_statistics(apply(KeyMap(rename, _why_dropped, _values), blobs, ORIGIN, not detector))


def _split(blob: str) -> tuple[str, str, str]:
    """Layer, ``_`` and a known parameter; three empty strings if there is none."""
    match = re.fullmatch(rf"(.+?)(_)({'|'.join(_PARAMETERS)})", blob)
    return match.groups() if match else ("", "", "")  # type: ignore[return-value]


def _layer(blob: str, table: tuple[tuple[str, str], ...]) -> str:
    layer = _split(blob)[0]
    return next((match.expand(name) for pattern, name in table if (match := re.fullmatch(pattern, layer))), "")


def _why_dropped(blob: str) -> str:
    if blob.endswith("_momentum"):
        return "momentum of the training"
    if blob == "lr":
        return "learning rate of the training"
    if re.fullmatch(r"(pred|fc1000)_[wb]", blob):
        return "classifier of ImageNet"
    if _split(blob)[2] == "b" and _layer(blob, _RESNET):
        return "bias of a convolution that has none in Detectron"
    return ""


def _values(blob: str, name: str, tensor: Tensor) -> Tensor:
    if blob.startswith("cls_score_"):
        return background_to_end(tensor)
    if blob.startswith("bbox_pred_"):
        return without_background(tensor, 4)
    if blob.startswith("mask_fcn_logits_"):
        return without_background(tensor, 1)
    if re.match(r"rpn_(cls_logits|bbox_pred)_[wb]", blob):
        return _anchors_by_size(tensor, 4 if "bbox" in blob else 1)
    return tensor


def _anchors_by_size(tensor: Tensor, each: int) -> Tensor:
    """(ratios * sizes * each, ...), all sizes of the first aspect ratio first -> all ratios of the first size first.

    Detectron's generate_anchors.py goes over the ratios and then the sizes, detectron2's DefaultAnchorGenerator over the
    sizes and then the ratios. With FPN a level has one size, and there is nothing to change.
    """
    return tensor.reshape(_ASPECT_RATIOS, -1, each, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


def _with_statistics(done: Converted) -> Converted:
    """Frozen BN computes weight / sqrt(running_var + 1e-5) * (x - running_mean) + bias."""
    for name, source in list(done.sources.items()):
        mean, var = (name.removesuffix("weight") + statistic for statistic in ("running_mean", "running_var"))
        if source.endswith("_bn_s") and mean not in done.weights:
            shift = torch.zeros_like(done.weights[name])
            done.weights.update({mean: shift, var: shift + (1 - 1e-5)})
            done.sources.update({mean: FOLDED, var: FOLDED})
    return done
