"""RoIAlign where no gradient is wanted, as a weighted sum of rows, which a CPU does several times faster."""

import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign
from torch import Tensor, nn
from torch.nn.modules.utils import _pair


class RowROIAlign(ROIAlign):
    """detectron2's ROIAlign; on a CPU, without gradients and with a fixed number of samples, by :func:`roi_align_rows`."""

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """(N, C, H, W) and (R, 5) -> (R, C, h, w)."""
        wanted = torch.is_grad_enabled() and input.requires_grad
        if wanted or input.device.type != "cpu" or self.sampling_ratio < 1 or torch.jit.is_tracing() or not len(rois):
            return super().forward(input, rois)
        return roi_align_rows(
            input, rois, _pair(self.output_size), self.spatial_scale, self.sampling_ratio, self.aligned
        )


def use_row_roi_align(model: nn.Module) -> int:
    """Let each ROIAlign of a built model be a :class:`RowROIAlign`; how many there are."""
    modules = [module for module in model.modules() if type(module) is ROIAlign]
    for module in modules:
        module.__class__ = RowROIAlign
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
