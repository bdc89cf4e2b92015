"""Triton kernels in which each program holds whole groups, and so reads x once (RoIs, small maps).

Shapes and tiles are those of ``tiling.py``, and ``fused.py`` launches the kernels. PIXELS, GROUPS
and WIDTH are the sizes of a ``tiling.WholeTile``. A program has GROUPS * WIDTH lanes, one per
channel; if D is not a power of two (FULL is False), some lanes have no channel.

No tensor size is compiled into a kernel (``do_not_specialize``), except that ALIGNMENT divides the
length of a row, so that a thread can read 16 bytes at once. An argument that is None is compiled in
as absent.
"""

import triton
import triton.language as tl

from .triton_pieces import (
    add_and_relu,
    assume_alignment,
    load_affine,
    load_per_channel,
    read,
    relu_backward,
    sample_start,
    tile_offsets,
    write,
)


@triton.jit
def _group_sums(values, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """Sum (GROUPS * WIDTH) values per group: (GROUPS)."""
    return tl.sum(tl.reshape(values, (GROUPS, WIDTH)), 1)


@triton.jit
def _repeat_per_channel(values, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """Repeat (GROUPS) values for the channels of each group: (1, GROUPS * WIDTH)."""
    return tl.reshape(tl.broadcast_to(values[:, None], (GROUPS, WIDTH)), (1, GROUPS * WIDTH))


@triton.jit
def _program_part(channels, groups, GROUPS: tl.constexpr, WIDTH: tl.constexpr, FULL: tl.constexpr):
    """Return the program's sample and first group, each lane's channel, and the mask of used lanes."""
    blocks = tl.cdiv(groups, GROUPS)
    first = tl.program_id(0) % blocks * GROUPS
    lane = tl.arange(0, GROUPS * WIDTH)
    if FULL:  # the channels of all lanes are adjacent
        c = first * WIDTH + lane
        valid = c < channels
    else:
        width = channels // groups
        c = (first + lane // WIDTH) * width + lane % WIDTH
        valid = (lane % WIDTH < width) & (first + lane // WIDTH < groups)
    return tl.program_id(0) // blocks, first, c, valid


@triton.jit(do_not_specialize=["channels", "pixels", "groups"])
def forward(
    x, residual, weight, bias, y, means, rstds, channels, pixels, groups, eps,
    CHANNELS_LAST: tl.constexpr, ALIGNMENT: tl.constexpr, RELU: tl.constexpr,
    PIXELS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Store y, and means and rstds, both (N, G)."""
    channels, pixels = assume_alignment(channels, pixels, CHANNELS_LAST, ALIGNMENT)
    n, first, c, valid = _program_part(channels, groups, GROUPS, WIDTH, FULL)
    start = sample_start(n, channels, pixels)
    offsets, mask = tile_offsets(tl.arange(0, PIXELS), c, valid, channels, pixels, CHANNELS_LAST)
    size = (channels // groups * pixels).to(tl.float32)

    centered = read(x, start, offsets, mask)
    mean = tl.zeros((GROUPS,), tl.float32)
    for _ in tl.static_range(2):  # the second step corrects the rounding of a sum of large values
        step = _group_sums(tl.sum(centered, 0), GROUPS, WIDTH) / size
        centered = tl.where(mask, centered - _repeat_per_channel(step, GROUPS, WIDTH), 0.0)
        mean += step
    rstd = 1 / tl.sqrt(_group_sums(tl.sum(centered * centered, 0), GROUPS, WIDTH) / size + eps)
    group = first + tl.arange(0, GROUPS)
    tl.store(means + n * groups + group, mean, group < groups)
    tl.store(rstds + n * groups + group, rstd, group < groups)

    w, b = load_affine(weight, bias, c, valid)
    z = tl.fma(centered, _repeat_per_channel(rstd, GROUPS, WIDTH) * w, b)
    write(y, start, offsets, mask, add_and_relu(z, residual, start, offsets, mask, RELU))


@triton.jit(do_not_specialize=["channels", "pixels", "groups", "samples"])
def backward(
    dy, x, y, means, rstds, weight, bias, dx, dresidual, sums, channels, pixels, groups, samples,
    CHANNELS_LAST: tl.constexpr, ALIGNMENT: tl.constexpr, RELU: tl.constexpr,
    PIXELS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Store dx, dresidual, and each sample's part of dL/dweight and dL/dbias in ``sums`` (2, N, C)."""
    channels, pixels = assume_alignment(channels, pixels, CHANNELS_LAST, ALIGNMENT)
    n, first, c, valid = _program_part(channels, groups, GROUPS, WIDTH, FULL)
    start = sample_start(n, channels, pixels)
    offsets, mask = tile_offsets(tl.arange(0, PIXELS), c, valid, channels, pixels, CHANNELS_LAST)
    size = (channels // groups * pixels).to(tl.float32)
    rstd = load_per_channel(rstds, n, c, valid, channels, groups)
    w, b = load_affine(weight, bias, c, valid)

    centered = read(x, start, offsets, mask) - load_per_channel(means, n, c, valid, channels, groups)
    g = read(dy, start, offsets, mask)
    if RELU:
        g = relu_backward(g, y, centered, rstd * w, b, start, offsets, mask)
    if dresidual is not None:
        write(dresidual, start, offsets, mask, g)
    normalized = centered * rstd
    dweight, dbias = tl.sum(g * normalized, 0), tl.sum(g, 0)
    tl.store(sums + n * channels + c, dweight, valid)
    tl.store(sums + (samples + n) * channels + c, dbias, valid)

    lane_weights = tl.reshape(w, (GROUPS * WIDTH,))
    slope = _repeat_per_channel(_group_sums(lane_weights * dweight, GROUPS, WIDTH) / size, GROUPS, WIDTH)
    shift = _repeat_per_channel(_group_sums(lane_weights * dbias, GROUPS, WIDTH) / size, GROUPS, WIDTH)
    if dx is not None:
        write(dx, start, offsets, mask, rstd * (w * g - shift - normalized * slope))
