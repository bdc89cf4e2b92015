"""RoIAlign where no gradient is wanted, as a weighted sum of rows, which a CPU does several times faster."""

import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels, convert_boxes_to_pooler_format
from detectron2.structures import Boxes
from torch import Tensor, nn


class RowROIPooler(ROIPooler):
    """detectron2's ROIPooler; on a CPU, without gradients and with a fixed number of samples, by :func:`roi_align_rows`."""

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Maps (N, C, H, W), one a level, and the boxes of N images, R in all -> (R, C, h, w), then channels_last."""
        if not self._is_for_rows(x, box_lists):
            return super().forward(x, box_lists)
        rois = convert_boxes_to_pooler_format(box_lists)
        levels = assign_boxes_to_levels(
            box_lists, self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        )
        pooled = x[0].new_empty(len(rois), *self.output_size, x[0].shape[1])
        for level, (pooler, features) in enumerate(zip(self.level_poolers, x, strict=True)):
            chosen = (levels == level).nonzero()[:, 0]
            rows = roi_align_rows(
                features, rois[chosen], self.output_size, pooler.spatial_scale, pooler.sampling_ratio, pooler.aligned
            )
            pooled[chosen] = rows.permute(0, 2, 3, 1)
        return pooled.permute(0, 3, 1, 2)

    def _is_for_rows(self, x: list[Tensor], box_lists: list[Boxes]) -> bool:
        wanted = torch.is_grad_enabled() and any(features.requires_grad for features in x)
        if wanted or x[0].device.type != "cpu" or torch.jit.is_tracing() or torch.jit.is_scripting():
            return False
        fixed = all(type(pooler) is ROIAlign and pooler.sampling_ratio > 0 for pooler in self.level_poolers)
        return fixed and sum(map(len, box_lists)) > 0


def use_row_poolers(model: nn.Module) -> int:
    """Let each ROIPooler of a built model be a :class:`RowROIPooler`; how many there are."""
    modules = [module for module in model.modules() if type(module) is ROIPooler]
    for module in modules:
        module.__class__ = RowROIPooler
    return len(modules)


def roi_align_rows(x: Tensor, rois: Tensor, size: tuple[int, int], scale: float, samples: int, aligned: bool) -> Tensor:
    """RoIAlign (He et al., Mask R-CNN, 2017) with ``samples`` x ``samples`` points a bin.

    Each bin is the mean of its points, and each point a weighted sum of four pixels. So a bin is a weighted sum of rows
    of the table (N * H * W, C), which is what ``F.embedding_bag`` computes. In channels_last the table is there already,
    and the output is channels_last.

    Args:
        x: (N, C, H, W).
        rois: (R, 5): index of the image, x0, y0, x1, y1 in pixels of it.
        size: (h, w) bins.
        scale: pixels of x for one of the image.
        samples: points a bin and axis.
        aligned: shift by half a pixel (ROIAlignV2).

    Returns:
        (R, C, h, w).
    """
    images, channels, height, width = x.shape
    table = x.permute(0, 2, 3, 1).reshape(-1, channels)
    rois = rois.float()
    rows, row_weights = _axis(rois[:, 2], rois[:, 4], size[0], height, scale, samples, aligned)
    columns, column_weights = _axis(rois[:, 1], rois[:, 3], size[1], width, scale, samples, aligned)
    first = rois[:, 0].long()[:, None, None, None, None] * (height * width)
    index = first + rows[:, :, None, :, None] * width + columns[:, None, :, None, :]
    weight = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    pixels = 4 * samples * samples
    bins = F.embedding_bag(
        index.view(-1, pixels), table, mode="sum", per_sample_weights=weight.reshape(-1, pixels).to(table.dtype)
    )
    return bins.view(len(rois), *size, channels).permute(0, 3, 1, 2)


def _axis(
    begin: Tensor, end: Tensor, bins: int, length: int, scale: float, samples: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Along one axis, the pixels that each bin reads and their weights: both (R, bins, 2 * samples)."""
    shift = 0.5 if aligned else 0.0
    begin, end = begin * scale - shift, end * scale - shift
    extent = end - begin if aligned else (end - begin).clamp(min=1)
    width = (extent / bins)[:, None, None]
    # In torchvision's order of operations, so that rounding is the same.
    numbers = torch.arange(bins, dtype=begin.dtype)[None, :, None]
    within = torch.arange(samples, dtype=begin.dtype)[None, None, :] + 0.5
    points = begin[:, None, None] + numbers * width + within * width / samples
    inside = (points >= -1) & (points <= length)
    points = points.clamp(min=0)
    low = points.long().clamp(max=length - 1)
    high = (low + 1).clamp(max=length - 1)
    share = torch.where(low < length - 1, points - low, 0)
    weights = torch.stack([1 - share, share], dim=-1) * (inside[..., None] / samples)
    return torch.stack([low, high], dim=-1).flatten(2), weights.flatten(2)
