"""RoIAlign of all levels of a feature pyramid, in the dtype of the features and in channels_last.

torchvision's RoIAlign copies channels_last maps to NCHW, and under autocast to float32. detectron2 rounds the
coordinates of RoIs to the dtype of the features, and makes a list of the RoIs of each level, for which the
CPU waits for the GPU.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from . import triton_roi_align
from .launcher import Kernel, current_stream, is_aligned
from .tiling import power_of_two

_forward, _backward = Kernel(triton_roi_align.pool), Kernel(triton_roi_align.spread)
_CHANNELS = 256  # channels that a program computes at once


def roi_align_levels(
    features: Sequence[torch.Tensor],
    rois: torch.Tensor,
    levels: torch.Tensor,
    size: tuple[int, int],
    scales: Sequence[float],
    samples: int,
    aligned: bool,
) -> torch.Tensor:
    """Compute RoIAlign of each RoI on its level. The gradient flows to the features.

    Args:
        features: one map (N, C, H, W) per level. A map that is not channels_last is copied.
        rois: (R, 5) in float32: the index of the image, then x0, y0, x1, y1 in pixels of the image.
        levels: (R,), the index in ``features``.
        size: (h, w), the number of bins.
        scales: the width of each map divided by the width of the image.
        samples: the number of points per bin along each axis; 0: one per pixel of the feature map.
        aligned: whether to shift by half a pixel, as ROIAlignV2 does.

    Returns:
        (R, C, h, w) in the dtype of the features and in channels_last.

    Raises:
        KernelError: Triton's kernel does not work here.
    """
    pooled: torch.Tensor = _RoIAlign.apply(rois.float(), levels, size, tuple(scales), samples, aligned, *features)
    return pooled


class _RoIAlign(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rois: torch.Tensor,
        levels: torch.Tensor,
        size: tuple[int, int],
        scales: tuple[float, ...],
        samples: int,
        aligned: bool,
        *features: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(rois, levels)
        ctx.shapes, ctx.dtype = [x.shape for x in features], features[0].dtype
        ctx.arguments = (size, scales, samples, aligned)
        channels = features[0].shape[1]
        pooled = torch.empty((len(rois), *size, channels), dtype=ctx.dtype, device=rois.device)
        for level, (x, scale) in enumerate(zip(features, scales, strict=True)):
            x = x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)
            _launch(_forward, x, rois, levels, pooled, level, scale, samples, aligned)
        return pooled.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rois, levels = ctx.saved_tensors
        _, scales, samples, aligned = ctx.arguments
        dy = dy.permute(0, 2, 3, 1).contiguous()
        gradients = []
        for level, (shape, scale) in enumerate(zip(ctx.shapes, scales, strict=True)):
            n, c, h, w = shape
            dx = torch.zeros((n, h, w, c), dtype=torch.float32, device=dy.device).permute(0, 3, 1, 2)
            _launch(_backward, dx, rois, levels, dy, level, scale, samples, aligned)
            gradients.append(dx.to(ctx.dtype))
        return None, None, None, None, None, None, *gradients


def _launch(
    kernel: Kernel,
    maps: torch.Tensor,
    rois: torch.Tensor,
    levels: torch.Tensor,
    bins: torch.Tensor,
    level: int,
    scale: float,
    samples: int,
    aligned: bool,
) -> None:
    """Launch a kernel for one level.

    Args:
        maps: (N, C, H, W) with adjacent channels: the features, or their gradient.
        bins: (R, h, w, C), contiguous: the output, or its gradient.
    """
    number, bins_h, bins_w, channels = bins.shape
    if not bins.numel():
        return
    strides = (maps.stride(0), maps.stride(2), maps.stride(3))
    alignment = math.gcd(channels, *strides, 8)
    tensors = (maps, rois, levels, bins) if kernel is _forward else (bins, rois, levels, maps)
    counts = (channels, *maps.shape[2:], *strides, level, bins_h, bins_w, max(samples, 0))
    args = (*tensors, *counts, float(scale), 0.5 if aligned else 0.0, 0.0 if aligned else 1.0)
    lanes = min(_CHANNELS, power_of_two(channels))
    constants = (("ALIGNMENT", alignment), ("CHANNELS", lanes), ("num_warps", 1), ("enable_fp_fusion", True))
    kernel(number * bins_h * bins_w, current_stream(maps), args, constants, is_aligned(maps, bins))
