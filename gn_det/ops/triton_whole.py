"""Triton kernels in which each program holds whole groups, and so reads x once (RoIs, small maps).

Shapes and tiles are those of ``tiling.py``, and ``fused.py`` launches the kernels. PIXELS and CHANNELS are the
sizes of a ``tiling.WholeTile``. A program has ``block`` channels, which belong to whole groups; other lanes
of the tile are empty.

A program needs sums per group, but Triton computes sums per channel. The program stores these in ``work``, waits
until all of its threads have done so, and loads them again, arranged by group; such loads come from the
cache. Some versions of Triton compile for minutes if the values are arranged by group in registers.

No tensor size is compiled into a kernel (``do_not_specialize``), except that ALIGNMENT divides the
length of a row, so that a thread can read 16 bytes at once. An argument that is None is compiled in
as absent.
"""

import triton
import triton.language as tl

from .triton_pieces import (
    add_and_relu,
    align,
    group_statistics,
    group_sums,
    load_averages,
    load_bias,
    load_per_channel,
    load_weight,
    read,
    relu_backward,
    sample_start,
    store_pairs,
    tile_offsets,
    write,
)


@triton.jit
def _program_part(channels, block, width, CHANNELS: tl.constexpr, ALIGNMENT: tl.constexpr):
    """Return the program's sample, its channels, the mask of used lanes, its first group and the one after its last."""
    block = block // ALIGNMENT * ALIGNMENT
    blocks = tl.cdiv(channels, block)
    first = tl.program_id(0) % blocks * block
    lane = tl.arange(0, CHANNELS)
    valid = (lane < block) & (first + lane < channels)
    return tl.program_id(0) // blocks, first + lane, valid, first // width, tl.minimum(first + block, channels) // width


@triton.jit(do_not_specialize=["channels", "pixels", "width", "block"])
def forward(
    x, residual, weight, bias, y, means, rstds, work, channels, pixels, width, block, eps,
    CHANNELS_LAST: tl.constexpr, ALIGNMENT: tl.constexpr, RELU: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Store y, and means and rstds, both (N, G). ``work`` has room for (N, 2, C)."""
    channels, pixels = align(channels, pixels, CHANNELS_LAST, ALIGNMENT)
    n, c, valid, first, last = _program_part(channels, block, width, CHANNELS, ALIGNMENT if CHANNELS_LAST else 1)
    groups = channels // width
    start = sample_start(n, channels, pixels)
    offsets, mask = tile_offsets(tl.arange(0, PIXELS), c, valid, channels, pixels, CHANNELS_LAST)
    values = read(x, start, offsets, mask)
    mean = tl.sum(values, 0) / pixels
    mean += tl.sum(tl.where(mask, values - mean[None, :], 0.0), 0) / pixels  # corrects the rounding of large values
    d = tl.where(mask, values - mean[None, :], 0.0)
    pairs = work + n.to(tl.int64) * channels * 2
    store_pairs(pairs, c, valid, channels, mean, tl.sum(d * d, 0))
    tl.debug_barrier()
    size = (width * pixels).to(tl.float32)
    for first_of_tile in range(first, last, GROUPS):
        mean_of_group, square = group_statistics(pairs, first_of_tile, last, channels, width, pixels, GROUPS, WIDTH)
        g = first_of_tile + tl.arange(0, GROUPS)
        tl.store(means + n * groups + g, mean_of_group, g < last)
        tl.store(rstds + n * groups + g, 1 / tl.sqrt(square / size + eps), g < last)
    tl.debug_barrier()
    scale = load_per_channel(rstds, n, c, valid, width, groups) * load_weight(weight, c, valid)[None, :]
    centered = values - load_per_channel(means, n, c, valid, width, groups)
    z = tl.fma(centered, scale, load_bias(bias, c, valid)[None, :])
    write(y, start, offsets, mask, add_and_relu(z, residual, start, offsets, mask, RELU))


@triton.jit(do_not_specialize=["channels", "pixels", "width", "block", "samples"])
def backward(
    dy, x, y, means, rstds, weight, bias, dx, dresidual, sums, work, channels, pixels, width, block, samples,
    CHANNELS_LAST: tl.constexpr, ALIGNMENT: tl.constexpr, RELU: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Store dx, dresidual, and each sample's part of dL/dweight and dL/dbias in ``sums`` (N, 2, C).

    ``work`` has room for (N, 2, G).
    """
    channels, pixels = align(channels, pixels, CHANNELS_LAST, ALIGNMENT)
    n, c, valid, first, last = _program_part(channels, block, width, CHANNELS, ALIGNMENT if CHANNELS_LAST else 1)
    groups = channels // width
    start = sample_start(n, channels, pixels)
    offsets, mask = tile_offsets(tl.arange(0, PIXELS), c, valid, channels, pixels, CHANNELS_LAST)
    rstd = load_per_channel(rstds, n, c, valid, width, groups)
    w = load_weight(weight, c, valid)[None, :]

    centered = read(x, start, offsets, mask) - load_per_channel(means, n, c, valid, width, groups)
    g = read(dy, start, offsets, mask)
    if RELU:
        g = relu_backward(g, y, centered, rstd * w, load_bias(bias, c, valid)[None, :], start, offsets, mask)
    if dresidual is not None:
        write(dresidual, start, offsets, mask, g)
    normalized = centered * rstd
    pairs = sums + n.to(tl.int64) * channels * 2
    store_pairs(pairs, c, valid, channels, tl.sum(g * normalized, 0), tl.sum(g, 0))
    if dx is not None:
        tl.debug_barrier()
        size = (width * pixels).to(tl.float32)
        averages = work + n * groups * 2
        for first_of_tile in range(first, last, GROUPS):
            slope, shift = group_sums(pairs, weight, first_of_tile, last, channels, width, GROUPS, WIDTH)
            group = first_of_tile + tl.arange(0, GROUPS)
            store_pairs(averages, group, group < last, groups, slope / size, shift / size)
        tl.debug_barrier()
        slope, shift = load_averages(averages, c, valid, width, groups)
        write(dx, start, offsets, mask, rstd * (w * g - shift - normalized * slope))
