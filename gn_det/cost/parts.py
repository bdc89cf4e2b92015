"""Run the layers of a detectron2 R-CNN part by part (stem, res2, ..., FPN, RPN, heads) on fixed RoIs.

The RoIs of a model with random weights are arbitrary. Therefore all steps that depend on values are left
out: proposal selection and sampling, losses, NMS, and mask pasting. None of them has parameters. The cost
of the remaining layers depends only on sizes, and they also run on PyTorch's meta device, where tensors
have sizes but no values.
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

_MIN_ROI_SIDE = 16.0  # side of the smallest RoI in pixels; the cost of an RoI does not depend on its size


class RCNNParts(nn.Module):
    """The layers of a GeneralizedRCNN, from a batch of images to logits.

    Args:
        model: a model that detectron2 built.
        box_rois: number of RoIs per image for the box head.
        mask_rois: number of RoIs per image for the mask head.

    Raises:
        GNDetError: the model does not consist of a backbone, an RPN, and detectron2's standard or C4
            heads.
    """

    def __init__(self, model: Any, box_rois: int, mask_rois: int):
        super().__init__()
        _check(model)
        heads: Any = model.roi_heads
        self.backbone: nn.Module = model.backbone
        self.rpn = _RPN(model.proposal_generator)
        c4 = isinstance(heads, Res5ROIHeads)
        self.box: nn.Module = _C4BoxHead(heads) if c4 else _BoxHead(heads)
        if heads.mask_on:
            self.mask: nn.Module = _C4MaskHead(heads) if c4 else _MaskHead(heads)
        self.box_rois, self.mask_rois = box_rois, mask_rois

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Run all parts on a batch of images.

        Args:
            images: (N, 3, H, W), normalized and padded.

        Returns:
            all predicted logits and box deltas: those of the RPN for each level, of the box head, and
            of the mask head.
        """
        features = self.backbone(images)
        objectness, deltas = self.rpn(features)
        predictions, pooled = self.box(features, _boxes(images, self.box_rois))
        outputs = [*objectness, *deltas, *predictions]
        if hasattr(self, "mask"):
            outputs.append(self.mask(features, _boxes(images, self.mask_rois), pooled))
        return outputs

    def module_names(self) -> dict[str, str]:
        """Return {part: name of its module in this model}.

        Parts can be nested. An outer part ("FPN") comes after the parts that it contains
        ("backbone res5").
        """
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
    supported = (
        isinstance(model, GeneralizedRCNN)
        and type(model.proposal_generator) is RPN
        and (isinstance(heads, Res5ROIHeads) or standard)
        and not getattr(heads, "keypoint_on", False)
        and (not heads.mask_on or isinstance(heads.mask_head, BaseMaskRCNNHead))
        and (not heads.mask_on or getattr(heads, "mask_pooler", heads) is not None)
    )
    if not supported:
        raise GNDetError(
            f"This model ({type(model).__name__} with {type(heads).__name__}) cannot be split into parts; it must be a "
            "GeneralizedRCNN with RPN and detectron2's standard or C4 heads for boxes and masks, without keypoints."
        )


def _boxes(images: torch.Tensor, number: int) -> list[Boxes]:
    """Return the same RoIs for each image: squares of sizes that are spread over all FPN levels.

    Their sides range from _MIN_ROI_SIDE to the short side of the image. They are always on the CPU with
    real values, even if the images are on the meta device, because a RoI's size selects its FPN level.
    """
    count, _, height, width = (int(size) for size in images.shape)
    side = torch.linspace(_MIN_ROI_SIDE, min(height, width), number)
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
    """The mask head of a C4 model.

    In training, it uses the features that the box head has pooled; in inference, it pools the
    detections.
    """

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
