"""The operation by Triton kernels, on CUDA: called like ``native.py``.

A group that one program can hold is read once (``triton_whole.py``: RoIs, the pyramid's upper levels). A larger one is read
twice, by as many programs as fill the GPU (``triton_split.py``).
"""

import contextlib
import functools
from collections.abc import Sequence

import torch

from . import tiling, triton_split, triton_whole
from .tiling import Sizes, Split, Whole


def forward(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    groups: int,
    eps: float,
    relu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As :func:`gn_det.ops.native.forward`."""
    sizes = _sizes(x, groups)
    y = torch.empty_like(x)
    mean = x.new_empty((sizes.samples, groups), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    tensors = (x, residual, _dense(weight), _dense(bias), y, mean, rstd)
    with _device(x):
        if whole := tiling.whole(sizes, tensors=1):
            constants = _constants(whole, sizes, 1)
            triton_whole.forward[(whole.programs,)](*tensors, *_counts(sizes), float(eps), RELU=relu, **constants)
        else:
            split = tiling.split(sizes, _processors(x.device))
            _statistics(x, mean, rstd, sizes, split, float(eps))
            args = (*tensors, *_counts(sizes, split), split.tiles)
            triton_split.apply[(split.programs,)](*args, RELU=relu, **_constants(split, sizes, 1))
    return y, mean, rstd


def _statistics(x, mean, rstd, sizes: Sizes, split: Split, eps: float) -> None:
    partial = _pairs(x, sizes, split)
    args = (x, partial, sizes.channels, sizes.pixels, split.chunks, split.tiles)
    triton_split.statistics[(split.programs,)](*args, **_constants(split, sizes, 1))
    length = split.pixels * split.tiles
    args = (partial, mean, rstd, *_counts(sizes, split), length, eps)
    triton_split.finish_statistics[(mean.numel(),)](*args, BLOCK=256, **_options(4))


def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    groups: int,
    relu: bool,
    needs: Sequence[bool],
) -> tuple[torch.Tensor | None, ...]:
    """As :func:`gn_det.ops.native.backward`."""
    sizes = _sizes(x, groups)
    dx = torch.empty_like(x) if needs[0] else None
    sums = mean.new_empty((2, sizes.samples, sizes.channels))
    inputs = (dy, x, y, mean, rstd, _dense(weight), _dense(bias))
    with _device(x):
        if whole := tiling.whole(sizes, tensors=2):
            dresidual = torch.empty_like(x) if needs[1] else None
            args = (*inputs, dx, dresidual, sums, *_counts(sizes), sizes.samples)
            triton_whole.backward[(whole.programs,)](*args, RELU=relu, **_constants(whole, sizes, 2))
        else:
            dresidual = _backward_split(inputs, dx, sums, sizes, relu)
    dweight, dbias = sums.sum(1) if needs[2] or needs[3] else (None, None)
    return dx, dresidual if needs[1] else None, dweight, dbias


def _backward_split(inputs: tuple, dx, sums, sizes: Sizes, relu: bool) -> torch.Tensor | None:
    """Fills dx and sums; returns dL/dresidual where there is a saved output."""
    dy, x, y, mean, rstd, weight, bias = inputs
    split = tiling.split(sizes, _processors(x.device))
    counts, constants = _counts(sizes, split), _constants(split, sizes, 2)
    partial, slopes, shifts = _pairs(x, sizes, split), torch.empty_like(mean), torch.empty_like(mean)
    dresidual = None if y is None else torch.empty_like(x)  # which the last pass reads in place of dy and y
    args = (*inputs, dresidual, partial, *counts, split.tiles)
    triton_split.gradient_sums[(split.programs,)](*args, RELU=relu, **constants)
    args = (partial, weight, sums, slopes, shifts, *counts, sizes.samples)
    triton_split.finish_sums[(mean.numel(),)](*args, WIDTH=16, BLOCK=64, **_options(4))
    if dx is not None:
        g, relu = (dy, relu) if dresidual is None else (dresidual, False)
        args = (g, x, mean, rstd, slopes, shifts, weight, bias, dx, *counts, split.tiles)
        triton_split.apply_gradient[(split.programs,)](*args, RELU=relu, **constants)
    return dresidual


def _sizes(x: torch.Tensor, groups: int) -> Sizes:
    """x is dense in one of two orders; where they are the same (one pixel), rows are of channels."""
    pixels = x.shape[2:].numel()
    return Sizes(x.shape[0], x.shape[1], pixels, groups, pixels == 1 or not x.is_contiguous(), x.element_size())


def _counts(sizes: Sizes, split: Split | None = None) -> tuple[int, ...]:
    counts = (sizes.channels, sizes.pixels, sizes.groups)
    return counts if split is None else (*counts, split.chunks)


def _pairs(x: torch.Tensor, sizes: Sizes, split: Split) -> torch.Tensor:
    """Room for two numbers of each chunk of each channel."""
    return x.new_empty((sizes.samples, sizes.channels, split.chunks, 2), dtype=torch.float32)


def _dense(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous()


@functools.lru_cache(maxsize=4096)
def _constants(tile: Whole | Split, sizes: Sizes, tensors: int) -> dict:
    """What a kernel is compiled for, when it holds ``tensors`` of x's size."""
    if isinstance(tile, Split):
        of_tile = {"PIXELS": tile.pixels, "CHANNELS": tile.channels}
    else:
        full = tile.width == sizes.width
        of_tile = {"PIXELS": tile.pixels, "GROUPS": tile.groups, "WIDTH": tile.width, "FULL": full}
    layout = {"CHANNELS_LAST": sizes.channels_last, "ALIGNED": sizes.aligned}
    return {**of_tile, **layout, **_options(tiling.warps(tile, tensors))}


def _options(warps: int) -> dict:
    return {"num_warps": warps, "enable_fp_fusion": True}  # said, as Triton changes its default


def _device(x: torch.Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 132  # Triton's interpreter: as on an H200
    return torch.cuda.get_device_properties(device).multi_processor_count
