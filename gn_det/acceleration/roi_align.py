"""Faster RoIAlign for inference on a CPU, computed as a weighted sum of feature rows."""

import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor, nn

from .rois import levels_of_rois, list_rois


class RowROIPooler(ROIPooler):
    """detectron2's ROIPooler, which uses :func:`roi_align_rows` where that is possible.

    It is possible on a CPU, if no gradient is needed and the number of samples per bin is fixed.
    """

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Pool the features of each box.

        Args:
            x: one feature map (N, C, H, W) per level.
            box_lists: the boxes of each of the N images, R in total.

        Returns:
            (R, C, h, w), in channels_last if it is computed by rows.
        """
        if not self._can_use_rows(x, box_lists):
            return super().forward(x, box_lists)
        rois = list_rois(box_lists)
        levels = levels_of_rois(self, box_lists)
        pooled = x[0].new_empty(len(rois), *self.output_size, x[0].shape[1])
        for level, (pooler, features) in enumerate(zip(self.level_poolers, x, strict=True)):
            on_level = (levels == level).nonzero()[:, 0]
            rows = roi_align_rows(
                features, rois[on_level], self.output_size, pooler.spatial_scale, pooler.sampling_ratio, pooler.aligned
            )
            pooled[on_level] = rows.permute(0, 2, 3, 1)
        return pooled.permute(0, 3, 1, 2)

    def _can_use_rows(self, x: list[Tensor], box_lists: list[Boxes]) -> bool:
        needs_gradient = torch.is_grad_enabled() and any(features.requires_grad for features in x)
        if needs_gradient or x[0].device.type != "cpu" or torch.jit.is_tracing() or torch.jit.is_scripting():
            return False
        fixed = all(type(pooler) is ROIAlign and pooler.sampling_ratio > 0 for pooler in self.level_poolers)
        return fixed and sum(map(len, box_lists)) > 0


def use_row_poolers(model: nn.Module) -> int:
    """Turn each ROIPooler of a built model into a :class:`RowROIPooler`; return the number of them."""
    modules = [module for module in model.modules() if type(module) is ROIPooler]
    for module in modules:
        module.__class__ = RowROIPooler
    return len(modules)


def roi_align_rows(x: Tensor, rois: Tensor, size: tuple[int, int], scale: float, samples: int, aligned: bool) -> Tensor:
    """Compute RoIAlign (He et al., Mask R-CNN, 2017) with ``samples`` x ``samples`` points per bin.

    Each bin is the mean of its points, and each point is a weighted sum of four pixels. So a bin is a
    weighted sum of rows of the table (N * H * W, C), which is what ``F.embedding_bag`` computes. A
    channels_last map has the memory layout of this table, so it is not copied.

    Args:
        x: (N, C, H, W).
        rois: (R, 5): the index of the image, then x0, y0, x1, y1 in pixels of the image.
        size: (h, w), the number of bins.
        scale: the width of x divided by the width of the image.
        samples: the number of points per bin along each axis.
        aligned: whether to shift by half a pixel, as ROIAlignV2 does.

    Returns:
        (R, C, h, w) in channels_last.
    """
    images, channels, height, width = x.shape
    table = x.permute(0, 2, 3, 1).reshape(-1, channels)
    rois = rois.float()
    rows, row_weights = _axis_weights(rois[:, 2], rois[:, 4], size[0], height, scale, samples, aligned)
    columns, column_weights = _axis_weights(rois[:, 1], rois[:, 3], size[1], width, scale, samples, aligned)
    first = rois[:, 0].long()[:, None, None, None, None] * (height * width)
    index = first + rows[:, :, None, :, None] * width + columns[:, None, :, None, :]
    weight = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    pixels = 4 * samples * samples
    bins = F.embedding_bag(
        index.view(-1, pixels), table, mode="sum", per_sample_weights=weight.reshape(-1, pixels).to(table.dtype)
    )
    return bins.view(len(rois), *size, channels).permute(0, 3, 1, 2)


def _axis_weights(
    begin: Tensor, end: Tensor, bins: int, length: int, scale: float, samples: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Return the pixels that each bin reads along one axis, and their weights, both (R, bins, 2 * samples)."""
    shift = 0.5 if aligned else 0.0
    begin, end = begin * scale - shift, end * scale - shift
    extent = end - begin if aligned else (end - begin).clamp(min=1)
    width = (extent / bins)[:, None, None]
    # The order of operations is torchvision's, so that the rounding is the same.
    bin_index = torch.arange(bins, dtype=begin.dtype)[None, :, None]
    offset = torch.arange(samples, dtype=begin.dtype)[None, None, :] + 0.5
    points = begin[:, None, None] + bin_index * width + offset * width / samples
    inside = (points >= -1) & (points <= length)
    points = points.clamp(min=0)
    low = points.long().clamp(max=length - 1)
    high = (low + 1).clamp(max=length - 1)
    fraction = torch.where(low < length - 1, points - low, 0)
    weights = torch.stack([1 - fraction, fraction], dim=-1) * (inside[..., None] / samples)
    return torch.stack([low, high], dim=-1).flatten(2), weights.flatten(2)
