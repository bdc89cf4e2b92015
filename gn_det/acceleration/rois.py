"""The RoIs of a batch in the format of RoIAlign, and their levels in a feature pyramid."""

import torch
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor


def list_rois(box_lists: list[Boxes]) -> Tensor:
    """Return the RoIs (R, 5) of all images: the index of the image, then x0, y0, x1, y1 in pixels.

    Same as detectron2's ``convert_boxes_to_pooler_format``, which waits for the GPU to know the number of RoIs.
    """
    images = [boxes.tensor.new_full((len(boxes), 1), image) for image, boxes in enumerate(box_lists)]
    return torch.cat([torch.cat(images), torch.cat([boxes.tensor for boxes in box_lists])], dim=1)


def levels_of_rois(pooler: ROIPooler, box_lists: list[Boxes]) -> Tensor:
    """Return the index (R,) of the level on which a pooler pools each RoI."""
    return assign_boxes_to_levels(
        box_lists, pooler.min_level, pooler.max_level, pooler.canonical_box_size, pooler.canonical_level
    )
