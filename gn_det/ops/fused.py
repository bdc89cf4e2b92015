"""Group norm with residual and ReLU on CUDA, by Triton kernels.

The functions have the signatures of those in ``native.py``.

If a whole group fits into one program, x is read once (``triton_whole.py``: RoIs and the upper
pyramid levels). Otherwise x is read twice, by as many programs as fill the GPU
(``triton_split.py``). A forward pass has one or two launches, a backward pass two.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch

from . import tiling, triton_split, triton_whole
from .launcher import Constants, Kernel, current_stream, is_aligned
from .tiling import Sizes, SplitTile, WholeTile

# Triton's options and tile sizes for the sums per group (GROUPS, WIDTH) and per chunk (ROWS, GROUPS).
_GROUP_TILE = {"GROUPS": 16, "WIDTH": 16}
_CHUNK_TILE = {"GROUPS": 16, "ROWS": 128}

whole_forward = Kernel(triton_whole.forward)
whole_backward = Kernel(triton_whole.backward)
split_statistics = Kernel(triton_split.statistics)
split_apply = Kernel(triton_split.apply)
split_sums = Kernel(triton_split.gradient_sums)
split_gradient = Kernel(triton_split.apply_gradient)


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
    if _on_other_device(x):
        with torch.cuda.device(x.device):
            return forward(x, residual, weight, bias, groups, eps, relu)
    plan, stream = _plan(x.shape, x.is_contiguous(), x.element_size(), groups, 1, relu), current_stream(x)
    aligned = is_aligned(x, residual, weight, bias)
    y = torch.empty_like(x)
    mean = torch.empty((x.shape[0], groups), dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    work, counters = _workspace(x, stream, plan)
    if plan.whole:
        args = (x, residual, weight, bias, y, mean, rstd, work, *plan.counts, eps)
        whole_forward(plan.programs, stream, args, plan.constants, aligned)
    else:
        args = (x, mean, rstd, work, counters, *plan.counts, *plan.parts, eps)
        split_statistics(plan.programs, stream, args, plan.sum_constants, aligned)
        args = (x, residual, weight, bias, y, mean, rstd, *plan.counts)
        split_apply(plan.programs, stream, args, plan.constants, aligned)
    return y, mean, rstd


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
    if _on_other_device(x):
        with torch.cuda.device(x.device):
            return backward(dy, x, y, mean, rstd, weight, bias, groups, relu, needs)
    plan = _plan(x.shape, x.is_contiguous(), x.element_size(), groups, 2, relu)
    inputs = _BackwardInputs(dy, x, y, mean, rstd, weight, bias)
    dx = torch.empty_like(x) if needs[0] else None
    if plan.whole:
        dresidual = torch.empty_like(x) if needs[1] else None
        affine = _backward_whole(inputs, dx, dresidual, plan, sums=needs[2] or needs[3])
    else:
        # The last kernel reads dresidual, if it exists, instead of dy and y.
        dresidual = None if y is None else torch.empty_like(x)
        affine = _backward_split(inputs, dx, dresidual, plan)
    dweight, dbias = (None, None) if affine is None else affine.unbind()
    return dx, dresidual if needs[1] else None, dweight, dbias


def _backward_whole(
    inputs: _BackwardInputs, dx: torch.Tensor | None, dresidual: torch.Tensor | None, plan: "_Plan", sums: bool
) -> torch.Tensor | None:
    """Store the results into ``dx`` and ``dresidual``; return dL/dweight and dL/dbias, (2, C), if ``sums``."""
    x, samples = inputs.x, inputs.x.shape[0]
    per_sample = _empty(x, samples, 2, x.shape[1])
    args = (*inputs, dx, dresidual, per_sample, _empty(x, plan.floats), *plan.counts, samples)
    whole_backward(plan.programs, current_stream(x), args, plan.constants, is_aligned(*inputs))
    return per_sample.sum(0) if sums else None


def _backward_split(
    inputs: _BackwardInputs, dx: torch.Tensor | None, dresidual: torch.Tensor | None, plan: "_Plan"
) -> torch.Tensor:
    """Store the results into ``dx`` and ``dresidual``; return dL/dweight and dL/dbias, (2, C)."""
    x, stream, aligned = inputs.x, current_stream(inputs.x), is_aligned(*inputs)
    samples, channels = x.shape[:2]
    # Not the workspace of the stream: another thread may launch a forward pass between the two kernels.
    work, (_, counters) = _empty(x, plan.floats), _workspace(x, stream, plan)
    args = (*inputs, dresidual, work, counters, *plan.counts, *plan.parts)
    split_sums(plan.programs, stream, args, plan.sum_constants, aligned)
    affine = _empty(x, 2, channels)
    g, constants = (inputs.dy, plan.constants) if dresidual is None else (dresidual, plan.constants_without_relu)
    programs = 0 if dx is None else plan.programs
    target = x if dx is None else dx  # no program stores into x if there are none for dx
    args = (g, x, *inputs[3:], work, target, affine, *plan.counts, samples, programs)
    split_gradient(programs + -(-channels // _CHUNK_TILE["GROUPS"]), stream, args, constants, aligned)
    return affine


def _on_other_device(x: torch.Tensor) -> bool:
    """Return whether x is not on the current device, on which Triton launches."""
    return x.is_cuda and x.get_device() != torch.cuda.current_device()


def _empty(x: torch.Tensor, *shape: int) -> torch.Tensor:
    """Return an uninitialized float32 tensor on the device of x."""
    return torch.empty(shape, dtype=torch.float32, device=x.device)


class _Plan(NamedTuple):
    """All that the launches for tensors of one size have in common.

    Attributes:
        whole: whether x is read once.
        programs: the number of programs that divide x.
        counts, parts: the integer arguments that most kernels have, and those for sums over chunks.
        floats: the size of the memory ``work``.
        counters: the number of counters.
        constants: name and value of the compile-time arguments, then Triton's options.
        constants_without_relu: the same for the gradient of the ReLU's input.
        sum_constants: those of the kernels that sum over chunks.
    """

    whole: bool
    programs: int
    counts: tuple[int, ...]
    parts: tuple[int, ...]
    floats: int
    counters: int
    constants: Constants
    constants_without_relu: Constants
    sum_constants: Constants


@functools.lru_cache(maxsize=4096)
def _plan(shape: torch.Size, contiguous: bool, itemsize: int, groups: int, tensors: int, relu: bool) -> _Plan:
    """Return the plan for tensors (N, C, *), contiguous or channels_last.

    Args:
        tensors: the number of tensors of x's size that a program holds: 1 in the forward pass, 2 in the backward pass.
    """
    samples, channels, pixels = shape[0], shape[1], shape[2:].numel()
    # With a single pixel, the layouts are the same.
    sizes = Sizes(samples, channels, pixels, groups, pixels == 1 or not contiguous, itemsize)
    counts: tuple[int, ...] = (channels, pixels, sizes.width)
    forward = tensors == 1
    if whole := tiling.whole_tile(sizes, tensors):
        constants = _constants(whole, whole.block, sizes, tensors, {"RELU": relu}, _GROUP_TILE)
        floats = 2 * samples * (channels if forward else groups)
        return _Plan(True, whole.programs, (*counts, whole.block), (), floats, 0, constants, (), ())
    split = tiling.split_tile(sizes, _multiprocessors())
    make = functools.partial(_constants, split, split.channels, sizes)
    # The statistics have two running values for each value that is read.
    sums = make(2, {} if forward else {"RELU": relu}, _GROUP_TILE | _CHUNK_TILE)
    applied, without_relu = (make(tensors, {"RELU": r}, {} if forward else _CHUNK_TILE) for r in (relu, False))
    floats = 2 * samples * (split.chunks * (channels + channels // split.piece) + (0 if forward else groups))
    counts = (*counts, split.chunks, split.tiles)
    parts, counters = (split.piece, split.blocks_per_part, samples), samples * split.parts
    return _Plan(False, split.programs, counts, parts, floats, counters, applied, without_relu, sums)


def _constants(
    tile: WholeTile | SplitTile, block: int, sizes: Sizes, tensors: int, relu: dict[str, bool], tiles: dict[str, int]
) -> Constants:
    """Return the constants of a kernel that holds ``tensors`` tiles, in the order of its parameters."""
    alignment = sizes.alignment(block)
    constants = {"CHANNELS_LAST": sizes.channels_last, "ALIGNMENT": alignment, **relu}
    constants |= {"PIXELS": tile.pixels, "CHANNELS": tile.channels, **tiles}
    # enable_fp_fusion is set explicitly, because Triton changes its default.
    options = {"num_warps": tiling.num_warps(tile, tensors, alignment), "enable_fp_fusion": True}
    return tuple((constants | options).items())


_workspaces: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}


def _workspace(x: torch.Tensor, stream: int, plan: _Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """Return memory for one kernel: ``plan.floats`` numbers, and counters that are 0 before and after the kernel.

    The kernels of one stream run one after the other, so they share it. A captured graph may run on any stream, so
    each of its kernels has its own.
    """
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return _empty(x, plan.floats), torch.zeros(plan.counters, dtype=torch.int32, device=x.device)
    key = (x.get_device(), stream)
    found = _workspaces.get(key)
    if found is None or found[0].numel() < plan.floats or found[1].numel() < plan.counters:
        sizes = (max(plan.floats, 2**18), max(plan.counters, 4096))
        found = _empty(x, sizes[0]), torch.zeros(sizes[1], dtype=torch.int32, device=x.device)
        _workspaces[key] = found
    return found


@functools.cache
def _multiprocessors() -> int:
    """Return the number of multiprocessors of the current GPU; in Triton's interpreter, that of an H200."""
    return torch.cuda.get_device_properties().multi_processor_count if torch.cuda.is_available() else 132
