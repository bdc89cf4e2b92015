"""Triton kernels for maps of any size: the pixels of a sample are divided over programs, so that one sample fills a GPU.

Forward: statistics of each chunk of pixels, one small reduction, then the output. Backward: sums of each chunk, one small
reduction, then dx. Nothing is added up atomically, so that results are the same every time.

Shapes as in ``tiling.py``, on whose tiles ``fused.py`` launches them: PIXELS and CHANNELS are those of ``tiling.Split``, and
a program goes over ``tiles`` tiles, its chunk of pixels. What is compiled in is said in ``triton_whole.py``.
"""

import triton
import triton.language as tl

from .triton_pieces import affine, aligned, before_relu, finish, of_group, read, sample, tile, write

_SIZES = ["channels", "pixels", "groups", "chunks", "tiles"]


@triton.jit
def _part(pid, channels, chunks, CHANNELS: tl.constexpr):
    """Program ``pid``'s sample, chunk and channels, and which of these exist."""
    blocks = tl.cdiv(channels, CHANNELS)
    c = pid % blocks * CHANNELS + tl.arange(0, CHANNELS)
    return pid // blocks // chunks, pid // blocks % chunks, c, c < channels


@triton.jit
def _store_pair(pairs, n, chunk, c, live, channels, chunks, first, second):
    """Into (N, C, chunks, 2)."""
    place = pairs + ((n * channels + c) * chunks + chunk) * 2
    tl.store(place, first, live)
    tl.store(place + 1, second, live)


@triton.jit(do_not_specialize=_SIZES)
def statistics(
    x, partial, channels, pixels, chunks, tiles,
    CHANNELS_LAST: tl.constexpr, ALIGNED: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """partial (N, C, chunks, 2): the chunk's mean, and the sum of squared distances to it.

    Each lane of the tile keeps its own (Welford, Technometrics 1962), so that no large mean or first value can cancel.
    """
    channels, pixels = aligned(channels, pixels, CHANNELS_LAST, ALIGNED)
    n, chunk, c, live = _part(tl.program_id(0), channels, chunks, CHANNELS)
    start = sample(n, channels, pixels)
    mean = tl.zeros((PIXELS, CHANNELS), tl.float32)
    square = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for i in range(0, tiles):
        p = (chunk * tiles + i) * PIXELS + tl.arange(0, PIXELS)
        places, keep = tile(p, c, live, channels, pixels, CHANNELS_LAST)
        v = read(x, start, places, keep)
        d = tl.where(keep, v - mean, 0.0)
        mean += d * (1.0 / (i + 1))
        square += d * (v - mean)

    left = pixels - chunk * tiles * PIXELS  # from the chunk's first pixel on
    count = tl.cdiv(tl.maximum(left - tl.arange(0, PIXELS), 0), PIXELS)  # of a lane's values
    count = tl.minimum(count, tiles).to(tl.float32)[:, None]
    average = tl.sum(mean * count, 0) / tl.minimum(left, tiles * PIXELS).to(tl.float32)
    d = mean - average[None, :]
    _store_pair(partial, n, chunk, c, live, channels, chunks, average, tl.sum(square + count * d * d, 0))


@triton.jit(do_not_specialize=[*_SIZES, "length"])
def finish_statistics(
    partial, means, rstds, channels, pixels, groups, chunks, length, eps, BLOCK: tl.constexpr
):  # fmt: skip
    """A group's chunks, ``length`` pixels each but for the last -> its mean and rstd (Chan et al. 1979)."""
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
    CHANNELS_LAST: tl.constexpr, ALIGNED: tl.constexpr, RELU: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """y from the statistics. The last chunk is the first, as the cache still holds what was read last."""
    channels, pixels = aligned(channels, pixels, CHANNELS_LAST, ALIGNED)
    n, chunk, c, live = _part(tl.num_programs(0) - 1 - tl.program_id(0), channels, chunks, CHANNELS)
    start = sample(n, channels, pixels)
    w, b = affine(weight, bias, c, live)
    mean = of_group(means, n, c, live, channels, groups)
    scale = of_group(rstds, n, c, live, channels, groups) * w
    for i in range(0, tiles):
        p = (chunk * tiles + i) * PIXELS + tl.arange(0, PIXELS)
        places, keep = tile(p, c, live, channels, pixels, CHANNELS_LAST)
        z = tl.fma(read(x, start, places, keep) - mean, scale, b)
        write(y, start, places, keep, finish(z, residual, start, places, keep, RELU))


@triton.jit(do_not_specialize=_SIZES)
def gradient_sums(
    dy, x, y, means, rstds, weight, bias, dresidual, partial, channels, pixels, groups, chunks, tiles,
    CHANNELS_LAST: tl.constexpr, ALIGNED: tl.constexpr, RELU: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """partial (N, C, chunks, 2): sums of g * (x - mean) * rstd and of g = dL/d(the ReLU's input); and g as dresidual."""
    channels, pixels = aligned(channels, pixels, CHANNELS_LAST, ALIGNED)
    n, chunk, c, live = _part(tl.program_id(0), channels, chunks, CHANNELS)
    start = sample(n, channels, pixels)
    w, b = affine(weight, bias, c, live)
    mean = of_group(means, n, c, live, channels, groups)
    rstd = of_group(rstds, n, c, live, channels, groups)
    dweight = tl.zeros((PIXELS, CHANNELS), tl.float32)
    dbias = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for i in range(0, tiles):
        p = (chunk * tiles + i) * PIXELS + tl.arange(0, PIXELS)
        places, keep = tile(p, c, live, channels, pixels, CHANNELS_LAST)
        centred = read(x, start, places, keep) - mean
        g = read(dy, start, places, keep)
        if RELU:
            g = before_relu(g, y, centred, rstd * w, b, start, places, keep)
        if dresidual is not None:
            write(dresidual, start, places, keep, g)
        dweight += g * (centred * rstd)
        dbias += g
    _store_pair(partial, n, chunk, c, live, channels, chunks, tl.sum(dweight, 0), tl.sum(dbias, 0))


@triton.jit(do_not_specialize=[*_SIZES, "samples"])
def finish_sums(
    partial, weight, sums, slopes, shifts, channels, pixels, groups, chunks, samples,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A group's chunks -> its part of sums (2, N, C), and the means over it of weight * sums: slopes, shifts (N, G)."""
    row = tl.program_id(0)
    n, width = row // groups, channels // groups
    slope = tl.zeros((WIDTH,), tl.float32)
    shift = tl.zeros((WIDTH,), tl.float32)
    for i in range(0, width, WIDTH):
        live = i + tl.arange(0, WIDTH) < width
        c = row % groups * width + i + tl.arange(0, WIDTH)
        dweight = tl.zeros((WIDTH, BLOCK), tl.float32)
        dbias = tl.zeros((WIDTH, BLOCK), tl.float32)
        for j in range(0, chunks, BLOCK):
            chunk = j + tl.arange(0, BLOCK)
            keep = live[:, None] & (chunk < chunks)[None, :]
            place = partial + ((n * channels + c)[:, None] * chunks + chunk[None, :]) * 2
            dweight += tl.load(place, keep, other=0.0)
            dbias += tl.load(place + 1, keep, other=0.0)
        w, _ = affine(weight, None, c, live)
        w = tl.reshape(w, (WIDTH,))
        tl.store(sums + n * channels + c, tl.sum(dweight, 1), live)
        tl.store(sums + (samples + n) * channels + c, tl.sum(dbias, 1), live)
        slope += w * tl.sum(dweight, 1)
        shift += w * tl.sum(dbias, 1)
    size = (width * pixels).to(tl.float32)
    tl.store(slopes + row, tl.sum(slope, 0) / size)
    tl.store(shifts + row, tl.sum(shift, 0) / size)


@triton.jit(do_not_specialize=_SIZES)
def apply_gradient(
    g, x, means, rstds, slopes, shifts, weight, bias, dx, channels, pixels, groups, chunks, tiles,
    CHANNELS_LAST: tl.constexpr, ALIGNED: tl.constexpr, RELU: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """dx from the sums, the last chunk first. Where RELU, ``g`` is dL/dy, and the mask is computed from x."""
    channels, pixels = aligned(channels, pixels, CHANNELS_LAST, ALIGNED)
    n, chunk, c, live = _part(tl.num_programs(0) - 1 - tl.program_id(0), channels, chunks, CHANNELS)
    start = sample(n, channels, pixels)
    w, b = affine(weight, bias, c, live)
    mean = of_group(means, n, c, live, channels, groups)
    rstd = of_group(rstds, n, c, live, channels, groups)
    slope = of_group(slopes, n, c, live, channels, groups)
    shift = of_group(shifts, n, c, live, channels, groups)
    for i in range(0, tiles):
        p = (chunk * tiles + i) * PIXELS + tl.arange(0, PIXELS)
        places, keep = tile(p, c, live, channels, pixels, CHANNELS_LAST)
        centred = read(x, start, places, keep) - mean
        before = read(g, start, places, keep)
        if RELU:
            before = before_relu(before, None, centred, rstd * w, b, start, places, keep)
        write(dx, start, places, keep, rstd * (w * before - shift - centred * rstd * slope))
