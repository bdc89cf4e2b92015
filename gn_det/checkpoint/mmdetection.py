"""Convert weights of mmdetection 1.x, 2.x and 3.x to detectron2's names.

The names are from the sources: mmdet/models of 1.x and 2.x (3.x kept the names), and mmcv's
ConvModule and ConvWS2d. Models with Weight Standardization have the names of GN models, and store
the weights of convolutions before standardization.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from .mapping import Converted, KeyMap, any_starts, apply, background_to_end, without_background
from .torchvision import from_torchvision, resnet_name, why_dropped

ORIGIN = "mmdetection"
# The layer's name in mmdetection and in detectron2, and the number of the first such layer in
# detectron2, which is 0 in mmdetection. detectron2 numbers the FPN's layers from 2, as res2.
_LAYERS = (
    (r"neck\.lateral_convs\.(?P<n>\d+)", "backbone.fpn_lateral", 2),
    (r"neck\.fpn_convs\.(?P<n>\d+)", "backbone.fpn_output", 2),
    (r"rpn_head\.rpn_conv", "proposal_generator.rpn_head.conv", 0),
    (r"rpn_head\.rpn_cls", "proposal_generator.rpn_head.objectness_logits", 0),
    (r"rpn_head\.rpn_reg", "proposal_generator.rpn_head.anchor_deltas", 0),
    (r"(?:roi_head\.)?bbox_head\.shared_convs\.(?P<n>\d+)", "roi_heads.box_head.conv", 1),
    (r"(?:roi_head\.)?bbox_head\.shared_fcs\.(?P<n>\d+)", "roi_heads.box_head.fc", 1),
    (r"(?:roi_head\.)?bbox_head\.fc_cls", "roi_heads.box_predictor.cls_score", 0),
    (r"(?:roi_head\.)?bbox_head\.fc_reg", "roi_heads.box_predictor.bbox_pred", 0),
    (r"(?:roi_head\.)?mask_head\.convs\.(?P<n>\d+)", "roi_heads.mask_head.mask_fcn", 1),
    (r"(?:roi_head\.)?mask_head\.upsample", "roi_heads.mask_head.deconv", 0),
    (r"(?:roi_head\.)?mask_head\.conv_logits", "roi_heads.mask_head.predictor", 0),
)
_PARAMETER = r"(?:\.conv)?\.(weight|bias)|\.(?P<norm>bn|gn)\.(weight|bias|running_mean|running_var)"


def from_mmdetection(weights: Mapping[str, Tensor]) -> Converted:
    """Convert the weights of a Faster or Mask R-CNN with FPN, or of a ResNet alone (one with ``gn1``).

    In 1.x the background is the first class and has its own boxes and masks; since 2.x it is the
    last and has none.

    Args:
        weights: {mmdetection's name: tensor}.

    Raises:
        GNDetError: a tensor has an impossible shape.
    """
    if not any_starts(weights, "backbone."):
        return from_torchvision(weights, ORIGIN)
    if any_starts(weights, "bbox_head.", "mask_head."):
        return apply(KeyMap(_rename, why_dropped, _background_last), weights, f"{ORIGIN} 1.x", False)
    return apply(KeyMap(_rename, why_dropped), weights, f"{ORIGIN} 2.x", False)


def _rename(name: str) -> str | None:
    if name.startswith("backbone."):
        inner = resnet_name(name.removeprefix("backbone."))
        return f"backbone.bottom_up.{inner}" if inner else None
    for pattern, layer, first in _LAYERS:
        if match := re.fullmatch(f"{pattern}(?:{_PARAMETER})", name):
            number = str(int(match["n"]) + first) if "n" in match.groupdict() else ""
            return f"{layer}{number}{'.norm' if match['norm'] else ''}.{name.rpartition('.')[2]}"
    return None


def _background_last(source: str, name: str, tensor: Tensor) -> Tensor:
    if ".cls_score." in name:
        return background_to_end(tensor)
    if ".bbox_pred." in name:
        return without_background(tensor, 4)
    return without_background(tensor, 1) if ".predictor." in name else tensor
