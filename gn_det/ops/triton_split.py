"""Triton kernels for maps of any size, in which several programs share the pixels of a sample.

The forward pass computes the statistics of each chunk of pixels, combines them per group, and
computes the output. The backward pass computes the sums of each chunk, combines them per group, and
computes dx. A single sample is enough to fill the GPU. No kernel adds atomically, so the results are
deterministic.

Shapes and tiles are those of ``tiling.py``, and ``fused.py`` launches the kernels. PIXELS and
CHANNELS are the sizes of a ``tiling.SplitTile``; a program loops over the ``tiles`` tiles of its
chunk of pixels. ``triton_whole.py`` describes what is compiled into a kernel.
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

_SIZES = ["channels", "pixels", "groups", "chunks", "tiles"]


@triton.jit
def _program_part(pid, channels, chunks, CHANNELS: tl.constexpr):
    """Return sample, chunk and channels of program ``pid``, and the mask of the channels that exist."""
    blocks = tl.cdiv(channels, CHANNELS)
    c = pid % blocks * CHANNELS + tl.arange(0, CHANNELS)
    return pid // blocks // chunks, pid // blocks % chunks, c, c < channels


@triton.jit
def _store_pair(pairs, n, chunk, c, valid, channels, chunks, first, second):
    """Store two numbers per channel into ``pairs`` (N, C, chunks, 2)."""
    address = pairs + ((n * channels + c) * chunks + chunk) * 2
    tl.store(address, first, valid)
    tl.store(address + 1, second, valid)


@triton.jit(do_not_specialize=_SIZES)
def statistics(
    x, partial, channels, pixels, chunks, tiles,
    CHANNELS_LAST: tl.constexpr, ALIGNMENT: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Store each chunk's mean and sum of squared deviations into ``partial`` (N, C, chunks, 2).

    Each element of the tile has a running mean and sum (Welford, Technometrics 1962), so that a
    large mean or first value causes no cancellation.
    """
    channels, pixels = assume_alignment(channels, pixels, CHANNELS_LAST, ALIGNMENT)
    n, chunk, c, valid = _program_part(tl.program_id(0), channels, chunks, CHANNELS)
    start = sample_start(n, channels, pixels)
    mean = tl.zeros((PIXELS, CHANNELS), tl.float32)
    square = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for i in range(0, tiles):
        p = (chunk * tiles + i) * PIXELS + tl.arange(0, PIXELS)
        offsets, mask = tile_offsets(p, c, valid, channels, pixels, CHANNELS_LAST)
        v = read(x, start, offsets, mask)
        d = tl.where(mask, v - mean, 0.0)
        mean += d * (1.0 / (i + 1))
        square += d * (v - mean)

    left = pixels - chunk * tiles * PIXELS  # pixels from the start of the chunk to the end of the map
    # The number of values that each element of the tile has seen.
    count = tl.cdiv(tl.maximum(left - tl.arange(0, PIXELS), 0), PIXELS)
    count = tl.minimum(count, tiles).to(tl.float32)[:, None]
    average = tl.sum(mean * count, 0) / tl.minimum(left, tiles * PIXELS).to(tl.float32)
    d = mean - average[None, :]
    _store_pair(partial, n, chunk, c, valid, channels, chunks, average, tl.sum(square + count * d * d, 0))


@triton.jit(do_not_specialize=[*_SIZES, "length"])
def finish_statistics(
    partial, means, rstds, channels, pixels, groups, chunks, length, eps, BLOCK: tl.constexpr
):  # fmt: skip
    """Combine the chunks of a group into its mean and rstd (Chan et al., 1979).

    All chunks have ``length`` pixels, except the last one, which may have fewer.
    """
    row = tl.program_id(0).to(tl.int64)
    parts = channels // groups * chunks
    partial += row * parts * 2
    last = pixels - (chunks - 1) * length
    size = (channels // groups * pixels).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, parts, BLOCK):
        part = i + tl.arange(0, BLOCK)
        count = tl.where(part % chunks == chunks - 1, last, length).to(tl.float32)
        total += count * tl.load(partial + part * 2, part < parts, other=0.0)
    mean = tl.sum(total, 0) / size
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, parts, BLOCK):
        part = i + tl.arange(0, BLOCK)
        count = tl.where(part % chunks == chunks - 1, last, length).to(tl.float32)
        d = tl.load(partial + part * 2, part < parts, other=0.0) - mean
        square = tl.load(partial + part * 2 + 1, part < parts, other=0.0)
        total += tl.where(part < parts, square + count * d * d, 0.0)
    tl.store(means + row, mean)
    tl.store(rstds + row, 1 / tl.sqrt(tl.sum(total, 0) / size + eps))


@triton.jit(do_not_specialize=_SIZES)
def apply(
    x, residual, weight, bias, y, means, rstds, channels, pixels, groups, chunks, tiles,
    CHANNELS_LAST: tl.constexpr, ALIGNMENT: tl.constexpr, RELU: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute y from the statistics.

    The chunks are processed in reverse order, because the cache still holds those that were read last.
    """
    channels, pixels = assume_alignment(channels, pixels, CHANNELS_LAST, ALIGNMENT)
    n, chunk, c, valid = _program_part(tl.num_programs(0) - 1 - tl.program_id(0), channels, chunks, CHANNELS)
    start = sample_start(n, channels, pixels)
    w, b = load_affine(weight, bias, c, valid)
    mean = load_per_channel(means, n, c, valid, channels, groups)
    scale = load_per_channel(rstds, n, c, valid, channels, groups) * w
    for i in range(0, tiles):
        p = (chunk * tiles + i) * PIXELS + tl.arange(0, PIXELS)
        offsets, mask = tile_offsets(p, c, valid, channels, pixels, CHANNELS_LAST)
        z = tl.fma(read(x, start, offsets, mask) - mean, scale, b)
        write(y, start, offsets, mask, add_and_relu(z, residual, start, offsets, mask, RELU))


@triton.jit(do_not_specialize=_SIZES)
def gradient_sums(
    dy, x, y, means, rstds, weight, bias, dresidual, partial, channels, pixels, groups, chunks, tiles,
    CHANNELS_LAST: tl.constexpr, ALIGNMENT: tl.constexpr, RELU: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Store each chunk's sums of g * (x - mean) * rstd and of g into ``partial`` (N, C, chunks, 2).

    g is the gradient of the ReLU's input. It is also stored into ``dresidual``, if that is not None.
    """
    channels, pixels = assume_alignment(channels, pixels, CHANNELS_LAST, ALIGNMENT)
    n, chunk, c, valid = _program_part(tl.program_id(0), channels, chunks, CHANNELS)
    start = sample_start(n, channels, pixels)
    w, b = load_affine(weight, bias, c, valid)
    mean = load_per_channel(means, n, c, valid, channels, groups)
    rstd = load_per_channel(rstds, n, c, valid, channels, groups)
    dweight = tl.zeros((PIXELS, CHANNELS), tl.float32)
    dbias = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for i in range(0, tiles):
        p = (chunk * tiles + i) * PIXELS + tl.arange(0, PIXELS)
        offsets, mask = tile_offsets(p, c, valid, channels, pixels, CHANNELS_LAST)
        centered = read(x, start, offsets, mask) - mean
        g = read(dy, start, offsets, mask)
        if RELU:
            g = relu_backward(g, y, centered, rstd * w, b, start, offsets, mask)
        if dresidual is not None:
            write(dresidual, start, offsets, mask, g)
        dweight += g * (centered * rstd)
        dbias += g
    _store_pair(partial, n, chunk, c, valid, channels, chunks, tl.sum(dweight, 0), tl.sum(dbias, 0))


@triton.jit(do_not_specialize=[*_SIZES, "samples"])
def finish_sums(
    partial, weight, sums, slopes, shifts, channels, pixels, groups, chunks, samples,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up the sums of a group's chunks, for the gradients of weight, bias and x.

    Stores the contribution of the sample to dL/dweight and dL/dbias into ``sums`` (2, N, C), and the
    averages of weight * sums over the group into ``slopes`` and ``shifts``, both (N, G).
    """
    row = tl.program_id(0)
    n, width = row // groups, channels // groups
    slope = tl.zeros((WIDTH,), tl.float32)
    shift = tl.zeros((WIDTH,), tl.float32)
    for i in range(0, width, WIDTH):
        valid = i + tl.arange(0, WIDTH) < width
        c = row % groups * width + i + tl.arange(0, WIDTH)
        dweight = tl.zeros((WIDTH, BLOCK), tl.float32)
        dbias = tl.zeros((WIDTH, BLOCK), tl.float32)
        for j in range(0, chunks, BLOCK):
            chunk = j + tl.arange(0, BLOCK)
            mask = valid[:, None] & (chunk < chunks)[None, :]
            address = partial + ((n * channels + c)[:, None] * chunks + chunk[None, :]) * 2
            dweight += tl.load(address, mask, other=0.0)
            dbias += tl.load(address + 1, mask, other=0.0)
        w, _ = load_affine(weight, None, c, valid)
        w = tl.reshape(w, (WIDTH,))
        tl.store(sums + n * channels + c, tl.sum(dweight, 1), valid)
        tl.store(sums + (samples + n) * channels + c, tl.sum(dbias, 1), valid)
        slope += w * tl.sum(dweight, 1)
        shift += w * tl.sum(dbias, 1)
    size = (width * pixels).to(tl.float32)
    tl.store(slopes + row, tl.sum(slope, 0) / size)
    tl.store(shifts + row, tl.sum(shift, 0) / size)


@triton.jit(do_not_specialize=_SIZES)
def apply_gradient(
    g, x, means, rstds, slopes, shifts, weight, bias, dx, channels, pixels, groups, chunks, tiles,
    CHANNELS_LAST: tl.constexpr, ALIGNMENT: tl.constexpr, RELU: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute dx from the combined sums, with the chunks in reverse order as in :func:`apply`.

    ``g`` is the gradient of the ReLU's input. If RELU, ``g`` is dL/dy instead, and the ReLU's mask is
    computed from x.
    """
    channels, pixels = assume_alignment(channels, pixels, CHANNELS_LAST, ALIGNMENT)
    n, chunk, c, valid = _program_part(tl.num_programs(0) - 1 - tl.program_id(0), channels, chunks, CHANNELS)
    start = sample_start(n, channels, pixels)
    w, b = load_affine(weight, bias, c, valid)
    mean = load_per_channel(means, n, c, valid, channels, groups)
    rstd = load_per_channel(rstds, n, c, valid, channels, groups)
    slope = load_per_channel(slopes, n, c, valid, channels, groups)
    shift = load_per_channel(shifts, n, c, valid, channels, groups)
    for i in range(0, tiles):
        p = (chunk * tiles + i) * PIXELS + tl.arange(0, PIXELS)
        offsets, mask = tile_offsets(p, c, valid, channels, pixels, CHANNELS_LAST)
        centered = read(x, start, offsets, mask) - mean
        gradient = read(g, start, offsets, mask)
        if RELU:
            gradient = relu_backward(gradient, None, centered, rstd * w, b, start, offsets, mask)
        write(dx, start, offsets, mask, rstd * (w * gradient - shift - centered * rstd * slope))
