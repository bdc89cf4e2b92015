"""An R-CNN of detectron2 as its parts (stem, res2, ..., FPN, RPN, box head, mask head), run on RoIs that are given.

The RoIs of a model with random weights are arbitrary, so what depends on values is left out: the choice of proposals,
their sampling, the losses, NMS and the pasting of masks. None of it has parameters. What is left are the layers, whose
cost depends on sizes alone, and which also run on PyTorch's meta device (sizes without values).
"""

from typing import Any

import torch
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from detectron2.structures import Boxes
from torch import nn

from ..errors import GNDetError

_SMALLEST = 16.0  # pixels of the smallest RoI's side; their cost does not depend on it


class RCNNParts(nn.Module):
    """The layers of a GeneralizedRCNN, from a batch of images to logits.

    Args:
        rois: RoIs an image for the box head.
        masks: RoIs an image for the mask head.

    Raises:
        GNDetError: the model is built otherwise than of a backbone, an RPN and detectron2's standard or C4 heads.
    """

    def __init__(self, model: Any, rois: int, masks: int):
        super().__init__()
        _check(model)
        heads: Any = model.roi_heads
        self.backbone: nn.Module = model.backbone
        self.rpn = _RPN(model.proposal_generator)
        c4 = isinstance(heads, Res5ROIHeads)
        self.box: nn.Module = _C4BoxHead(heads) if c4 else _BoxHead(heads)
        if heads.mask_on:
            self.mask: nn.Module = _C4MaskHead(heads) if c4 else _MaskHead(heads)
        self.rois, self.masks = rois, masks

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Images (N, 3, H, W), normalised and padded -> all logits and deltas that are predicted."""
        features = self.backbone(images)
        objectness, deltas = self.rpn(features)
        predictions, pooled = self.box(features, _boxes(images, self.rois))
        outputs = [*objectness, *deltas, *predictions]
        if hasattr(self, "mask"):
            outputs.append(self.mask(features, _boxes(images, self.masks), pooled))
        return outputs

    def parts(self) -> dict[str, str]:
        """Name of a part -> name of its module here; an outer one ("FPN") stands after those within it ("backbone res5")."""
        bottom_up = "backbone.bottom_up" if hasattr(self.backbone, "bottom_up") else "backbone"
        names = {
            f"backbone {name}": f"{bottom_up}.{name}" for name, _ in self.get_submodule(bottom_up).named_children()
        }
        outer = "FPN" if "bottom_up" in bottom_up else "backbone, rest"
        names |= {outer: "backbone", "RPN": "rpn", "box head": "box"}
        return names | ({"mask head": "mask"} if hasattr(self, "mask") else {})


def _check(model: Any) -> None:
    heads: Any = getattr(model, "roi_heads", None)
    standard = isinstance(heads, StandardROIHeads) and type(heads).forward is StandardROIHeads.forward
    known = (
        isinstance(model, GeneralizedRCNN)
        and type(model.proposal_generator) is RPN
        and (isinstance(heads, Res5ROIHeads) or standard)
        and not getattr(heads, "keypoint_on", False)
        and (not heads.mask_on or isinstance(heads.mask_head, BaseMaskRCNNHead))
        and (not heads.mask_on or getattr(heads, "mask_pooler", heads) is not None)
    )
    if not known:
        raise GNDetError(
            f"This model cannot be taken apart ({type(model).__name__} with {type(heads).__name__}): it has to be a "
            "GeneralizedRCNN with RPN and detectron2's standard or C4 heads for boxes and masks, without key points."
        )


def _boxes(images: torch.Tensor, number: int) -> list[Boxes]:
    """The same RoIs for each image: squares from _SMALLEST pixels to the image's short side, so that each level has some.

    They are on the CPU also where the images have no values, as they choose the level that they are pooled from.
    """
    count, _, height, width = (int(size) for size in images.shape)
    side = torch.linspace(_SMALLEST, min(height, width), number)
    zero = torch.zeros_like(side)
    return [Boxes(torch.stack([zero, zero, side, side], dim=1)) for _ in range(count)]


class _RPN(nn.Module):
    def __init__(self, rpn: RPN):
        super().__init__()
        self.head, self.in_features = rpn.rpn_head, rpn.in_features

    def forward(self, features):
        return self.head([features[name] for name in self.in_features])


class _BoxHead(nn.Module):
    def __init__(self, heads: StandardROIHeads):
        super().__init__()
        self.pooler, self.head, self.predictor = heads.box_pooler, heads.box_head, heads.box_predictor
        self.in_features = heads.box_in_features

    def forward(self, features, boxes):
        pooled = self.pooler([features[name] for name in self.in_features], boxes)
        return self.predictor(self.head(pooled)), None


class _MaskHead(nn.Module):
    def __init__(self, heads: StandardROIHeads):
        super().__init__()
        self.pooler, self.head, self.in_features = heads.mask_pooler, heads.mask_head, heads.mask_in_features

    def forward(self, features, boxes, _):
        return self.head.layers(self.pooler([features[name] for name in self.in_features], boxes))


class _C4BoxHead(nn.Module):
    def __init__(self, heads: Res5ROIHeads):
        super().__init__()
        self.pooler, self.res5, self.predictor = heads.pooler, heads.res5, heads.box_predictor
        self.in_features = heads.in_features

    def forward(self, features, boxes):
        pooled = self.res5(self.pooler([features[name] for name in self.in_features], boxes))
        return self.predictor(pooled.mean(dim=[2, 3])), pooled


class _C4MaskHead(nn.Module):
    """In training the masks are predicted from the box head's features, in inference from those of the detections."""

    def __init__(self, heads: Res5ROIHeads):
        super().__init__()
        self.pooler, self.res5, self.head = heads.pooler, heads.res5, heads.mask_head
        self.in_features = heads.in_features

    def forward(self, features, boxes, box_features):
        if self.training:
            rows, masks = len(box_features) // len(boxes), len(boxes[0])
            chosen = torch.cat([torch.arange(masks) + rows * image for image in range(len(boxes))])
            return self.head.layers(box_features.index_select(0, chosen.to(box_features.device)))
        return self.head.layers(self.res5(self.pooler([features[name] for name in self.in_features], boxes)))
