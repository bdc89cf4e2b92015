"""RoIAlign on the levels of a feature pyramid without selecting the RoIs of each level."""

import torch
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor

from ..roi_align import RowROIPooler

_OUTSIDE = -1e4  # in pixels; a RoI outside of the map reads nothing, and float16 can represent it


class OnDeviceROIPooler(ROIPooler):
    """detectron2's ROIPooler, which in training pools all RoIs on each level.

    RoIs that belong to another level are moved outside of the map, where RoIAlign returns 0.
    """

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Return (R, C, h, w), the features of each box. Same arguments as detectron2's ROIPooler."""
        if not self.training:
            return super().forward(x, box_lists)
        images = [boxes.tensor.new_full((len(boxes), 1), image) for image, boxes in enumerate(box_lists)]
        rois = torch.cat([torch.cat(images), torch.cat([boxes.tensor for boxes in box_lists])], dim=1)
        if len(x) == 1:
            return self.level_poolers[0](x[0], rois)
        levels = assign_boxes_to_levels(
            box_lists, self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        )
        outside = torch.full_like(rois, _OUTSIDE)
        outside[:, 0] = 0
        pooled = [
            pooler(features, torch.where((levels == level)[:, None], rois, outside))
            for level, (pooler, features) in enumerate(zip(self.level_poolers, x, strict=True))
        ]
        return sum(pooled[1:], pooled[0])


class OnDeviceRowROIPooler(OnDeviceROIPooler, RowROIPooler):
    """gn_det's RowROIPooler, with the training of :class:`OnDeviceROIPooler`."""
