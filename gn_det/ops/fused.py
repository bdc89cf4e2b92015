"""Group norm with residual and ReLU on CUDA, by Triton kernels.

The functions have the signatures of those in ``native.py``.

If a whole group fits into one program, x is read once (``triton_whole.py``: RoIs and the upper
pyramid levels). Otherwise x is read twice, by as many programs as fill the GPU
(``triton_split.py``).
"""

import contextlib
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch

from . import tiling, triton_split, triton_whole
from .tiling import Sizes, SplitTile, WholeTile


class _BackwardInputs(NamedTuple):
    """The tensors that the backward kernels read, in the order of the kernels' parameters."""

    dy: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor | None
    mean: torch.Tensor
    rstd: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None


def forward(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    groups: int,
    eps: float,
    relu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y, mean and rstd, as :func:`gn_det.ops.native.forward` does."""
    sizes = _sizes(x, groups)
    y = torch.empty_like(x)
    mean = x.new_empty((sizes.samples, groups), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    tensors = (x, residual, _contiguous(weight), _contiguous(bias), y, mean, rstd)
    with _current_device(x):
        if whole := tiling.whole_tile(sizes, tensors=1):
            constants = _constants(whole, sizes, 1)
            triton_whole.forward[(whole.programs,)](*tensors, *_counts(sizes), float(eps), RELU=relu, **constants)
        else:
            split = tiling.split_tile(sizes, _multiprocessors(x.device))
            _statistics(x, mean, rstd, sizes, split, float(eps))
            args = (*tensors, *_counts(sizes, split), split.tiles)
            triton_split.apply[(split.programs,)](*args, RELU=relu, **_constants(split, sizes, 1))
    return y, mean, rstd


def _statistics(
    x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, sizes: Sizes, split: SplitTile, eps: float
) -> None:
    """Compute mean and rstd of each group in two steps and store them into ``mean`` and ``rstd``."""
    partial = _empty_pairs(x, sizes, split)
    inputs = (x, partial, sizes.channels, sizes.pixels, split.chunks, split.tiles)
    triton_split.statistics[(split.programs,)](*inputs, **_constants(split, sizes, 1))
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
    """Return the gradients that :func:`gn_det.ops.native.backward` returns."""
    sizes = _sizes(x, groups)
    dx = torch.empty_like(x) if needs[0] else None
    sums = mean.new_empty((2, sizes.samples, sizes.channels))
    inputs = _BackwardInputs(dy, x, y, mean, rstd, _contiguous(weight), _contiguous(bias))
    with _current_device(x):
        if whole := tiling.whole_tile(sizes, tensors=2):
            dresidual = torch.empty_like(x) if needs[1] else None
            args = (*inputs, dx, dresidual, sums, *_counts(sizes), sizes.samples)
            triton_whole.backward[(whole.programs,)](*args, RELU=relu, **_constants(whole, sizes, 2))
        else:
            dresidual = _backward_split(inputs, dx, sums, sizes, relu)
    dweight, dbias = sums.sum(1) if needs[2] or needs[3] else (None, None)
    return dx, dresidual if needs[1] else None, dweight, dbias


def _backward_split(
    inputs: _BackwardInputs, dx: torch.Tensor | None, sums: torch.Tensor, sizes: Sizes, relu: bool
) -> torch.Tensor | None:
    """Store the results into ``dx`` and ``sums``; return the gradient of the residual if y was saved."""
    x, mean = inputs.x, inputs.mean
    split = tiling.split_tile(sizes, _multiprocessors(x.device))
    counts, constants = _counts(sizes, split), _constants(split, sizes, 2)
    partial, slopes, shifts = _empty_pairs(x, sizes, split), torch.empty_like(mean), torch.empty_like(mean)
    # The last kernel reads dresidual, if it exists, instead of dy and y.
    dresidual = None if inputs.y is None else torch.empty_like(x)
    args = (*inputs, dresidual, partial, *counts, split.tiles)
    triton_split.gradient_sums[(split.programs,)](*args, RELU=relu, **constants)
    args = (partial, inputs.weight, sums, slopes, shifts, *counts, sizes.samples)
    triton_split.finish_sums[(mean.numel(),)](*args, WIDTH=16, BLOCK=64, **_options(4))
    if dx is not None:
        g, relu = (inputs.dy, relu) if dresidual is None else (dresidual, False)
        args = (g, x, mean, inputs.rstd, slopes, shifts, inputs.weight, inputs.bias, dx, *counts, split.tiles)
        triton_split.apply_gradient[(split.programs,)](*args, RELU=relu, **constants)
    return dresidual


def _sizes(x: torch.Tensor, groups: int) -> Sizes:
    """Return the sizes of x, contiguous or channels_last; a single pixel counts as channels_last."""
    pixels = x.shape[2:].numel()
    return Sizes(x.shape[0], x.shape[1], pixels, groups, pixels == 1 or not x.is_contiguous(), x.element_size())


def _counts(sizes: Sizes, split: SplitTile | None = None) -> tuple[int, ...]:
    """Return the integer arguments that the kernels have in common, in their order."""
    counts = (sizes.channels, sizes.pixels, sizes.groups)
    return counts if split is None else (*counts, split.chunks)


def _empty_pairs(x: torch.Tensor, sizes: Sizes, split: SplitTile) -> torch.Tensor:
    """Return an uninitialized tensor (N, C, chunks, 2) for two numbers per channel and chunk."""
    return x.new_empty((sizes.samples, sizes.channels, split.chunks, 2), dtype=torch.float32)


def _contiguous(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous()


@functools.lru_cache(maxsize=4096)
def _constants(tile: WholeTile | SplitTile, sizes: Sizes, tensors: int) -> dict[str, int]:
    """Return the compile-time arguments of a kernel that holds ``tensors`` tensors of x's size."""
    if isinstance(tile, SplitTile):
        shape = {"PIXELS": tile.pixels, "CHANNELS": tile.channels}
    else:
        full = tile.width == sizes.width
        shape = {"PIXELS": tile.pixels, "GROUPS": tile.groups, "WIDTH": tile.width, "FULL": full}
    layout = {"CHANNELS_LAST": sizes.channels_last, "ALIGNMENT": sizes.alignment}
    return {**shape, **layout, **_options(tiling.num_warps(tile, tensors))}


def _options(num_warps: int) -> dict[str, int]:
    # enable_fp_fusion is set explicitly, because Triton changes its default.
    return {"num_warps": num_warps, "enable_fp_fusion": True}


def _current_device(x: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context that makes the device of x current: Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 132  # in Triton's interpreter: the number of an H200
    return torch.cuda.get_device_properties(device).multi_processor_count
