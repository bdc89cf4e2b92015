"""mmdetection's names -> detectron2's.

From its sources: mmdet/models of 1.x and 2.x (3.x kept the names), mmcv's ConvModule and ConvWS2d. GN with Weight
Standardisation has the names of GN, and its convolutions the weights before they are standardised.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from .mapping import Converted, KeyMap, any_starts, apply, background_to_end, without_background
from .torchvision import from_torchvision, resnet_name, why_dropped

ORIGIN = "mmdetection"
# Layer, its name in detectron2, and what detectron2 calls the first (0 in mmdetection): its FPN counts from res2.
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
    """Weights of mmdetection's: a Faster or Mask R-CNN with FPN of 1.x or 2.x, or a ResNet alone (``gn1``).

    In 1.x the background class is the first, with boxes and masks of its own, in 2.x the last and without.
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
