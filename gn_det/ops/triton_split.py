"""Triton kernels for maps of any size, in which several programs share the pixels of a sample.

A single sample is enough to fill the GPU. Each direction has two kernels. The first one computes the sums of
each chunk of pixels; in each part of a sample, the program that finishes last combines the chunks. The second
one computes y or dx. The order of all sums is fixed, so the results are deterministic.

Shapes and tiles are those of ``tiling.py``, and ``fused.py`` launches the kernels. PIXELS and CHANNELS are the
sizes of a ``tiling.SplitTile``. A program loops over the ``tiles`` tiles of its chunk, in one block of CHANNELS
channels. A *piece* has ``piece`` adjacent channels, which are in one group and in one block. A *part* has
``blocks_per_part`` adjacent blocks, which have whole groups. ``triton_whole.py`` describes what is compiled into a
kernel, and why sums per channel are stored and loaded again.
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

_SIZES = ["channels", "pixels", "width", "chunks", "tiles", "piece", "blocks_per_part", "samples"]


@triton.jit
def _program_part(pid, channels, chunks, CHANNELS: tl.constexpr):
    """Return sample, chunk, block and channels of program ``pid``, and the mask of the channels that exist."""
    blocks = tl.cdiv(channels, CHANNELS)
    block = pid % blocks
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    return pid // blocks // chunks, pid // blocks % chunks, block, c, c < channels


@triton.jit
def _row(pairs, n, chunk, length, chunks):
    """Return the address of the row of a chunk in ``pairs`` (N, chunks, 2, length)."""
    return pairs + (n.to(tl.int64) * chunks + chunk) * length * 2


@triton.jit
def _pieces_of_block(block, channels, piece, CHANNELS: tl.constexpr):
    """Return the number of pieces of a sample, and the first and last + 1 piece of a block of channels."""
    return channels // piece, block * CHANNELS // piece, tl.minimum((block + 1) * CHANNELS, channels) // piece


@triton.jit
def _part_if_last(counters, n, block, channels, chunks, blocks_per_part, CHANNELS: tl.constexpr):
    """Return whether this program is the last one of its part to call this, and the first and last + 1 channel.

    The last one can load what the others have stored before. ``counters`` (N, parts) must be 0 before the
    first program calls this, and is 0 after the last one has.
    """
    blocks = tl.cdiv(channels, CHANNELS)
    part = block // blocks_per_part
    first = part * blocks_per_part
    last = tl.minimum(first + blocks_per_part, blocks)
    counter = counters + n * tl.cdiv(blocks, blocks_per_part) + part
    tl.debug_barrier()  # all threads of this program have stored
    is_last = tl.atomic_add(counter, 1, sem="acq_rel") == (last - first) * chunks - 1
    if is_last:
        tl.store(counter, 0)
    return is_last, first * CHANNELS, tl.minimum(last * CHANNELS, channels)


@triton.jit
def _load_pieces(rows, i, k, first, last, chunks, pieces_per_group, pieces, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """Return the two numbers of piece k of each group from chunk i on, both (ROWS, GROUPS), and the mask."""
    chunk = i + tl.arange(0, ROWS)
    g = first + tl.arange(0, GROUPS)
    mask = (chunk < chunks)[:, None] & (g < last)[None, :]
    address = rows + chunk[:, None] * (2 * pieces) + (g * pieces_per_group + k)[None, :]
    # Not from the L1 cache, which may hold what was there before.
    a = tl.load(address, mask, other=0.0, cache_modifier=".cg")
    b = tl.load(address + pieces, mask, other=0.0, cache_modifier=".cg")
    return a, b, mask


@triton.jit(do_not_specialize=_SIZES)
def statistics(
    x, means, rstds, work, counters, channels, pixels, width, chunks, tiles, piece, blocks_per_part, samples, eps,
    CHANNELS_LAST: tl.constexpr, ALIGNMENT: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Store means and rstds, both (N, G).

    ``work`` has room for each chunk's mean and sum of squared deviations of each channel (N, chunks, 2, C) and
    of each piece (N, chunks, 2, C / piece). Each element of the tile has a running mean and sum (Welford,
    Technometrics 1962), so that a large mean or first value causes no cancellation.
    """
    channels, pixels = align(channels, pixels, CHANNELS_LAST, ALIGNMENT)
    n, chunk, block, c, valid = _program_part(tl.program_id(0), channels, chunks, CHANNELS)
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
    length = tl.minimum(left, tiles * PIXELS)  # pixels of the chunk
    average = tl.sum(mean * count, 0) / length.to(tl.float32)
    d = mean - average[None, :]
    row = _row(work, n, chunk, channels, chunks)
    store_pairs(row, c, valid, channels, average, tl.sum(square + count * d * d, 0))
    tl.debug_barrier()

    pieces, first_piece, last = _pieces_of_block(block, channels, piece, CHANNELS)
    work += samples.to(tl.int64) * chunks * channels * 2
    row_of_pieces = _row(work, n, chunk, pieces, chunks)
    for first in range(first_piece, last, GROUPS):
        mean_of_piece, square_of_piece = group_statistics(row, first, last, channels, piece, length, GROUPS, WIDTH)
        index = first + tl.arange(0, GROUPS)
        store_pairs(row_of_pieces, index, index < last, pieces, mean_of_piece, square_of_piece)

    is_last, first, last = _part_if_last(counters, n, block, channels, chunks, blocks_per_part, CHANNELS)
    if is_last:
        _finish_statistics(
            _row(work, n, 0, pieces, chunks), means, rstds, n, first // width, last // width, channels, pixels, width,
            chunks, tiles * PIXELS, piece, eps, ROWS, GROUPS,
        )  # fmt: skip


@triton.jit
def _finish_statistics(
    rows, means, rstds, n, first_group, last_group, channels, pixels, width, chunks, length, piece, eps,
    ROWS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Store mean and rstd of some groups, given the pieces of each chunk (Chan et al., 1979).

    All chunks have ``length`` pixels, except the last one, which may have fewer. The means are summed as
    differences from the mean of the first piece, so that a large mean causes no cancellation.
    """
    groups, size = channels // width, (width * pixels).to(tl.float32)
    for first in range(first_group, last_group, GROUPS):
        g = first + tl.arange(0, GROUPS)
        origin = tl.load(rows + g * (width // piece), g < last_group, other=0.0, cache_modifier=".cg")
        total = tl.zeros((ROWS, GROUPS), tl.float32)
        square = tl.zeros((ROWS, GROUPS), tl.float32)
        for i in range(0, chunks, ROWS):
            count = tl.minimum(pixels - (i + tl.arange(0, ROWS)) * length, length) * piece
            count = count.to(tl.float32)[:, None]
            for k in range(0, width // piece):
                mean, m2, mask = _load_pieces(
                    rows, i, k, first, last_group, chunks, width // piece, channels // piece, ROWS, GROUPS
                )
                d = tl.where(mask, mean - origin[None, :], 0.0)
                total += count * d
                square += m2 + count * d * d
        d = tl.sum(total, 0) / size
        variance = tl.maximum(tl.sum(square, 0) / size - d * d, 0.0)
        tl.store(means + n * groups + g, origin + d, g < last_group)
        tl.store(rstds + n * groups + g, 1 / tl.sqrt(variance + eps), g < last_group)


@triton.jit(do_not_specialize=_SIZES)
def apply(
    x, residual, weight, bias, y, means, rstds, channels, pixels, width, chunks, tiles,
    CHANNELS_LAST: tl.constexpr, ALIGNMENT: tl.constexpr, RELU: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute y from the statistics.

    The chunks are processed in reverse order, because the cache still holds those that were read last.
    """
    channels, pixels = align(channels, pixels, CHANNELS_LAST, ALIGNMENT)
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    n, chunk, block, c, valid = _program_part(pid, channels, chunks, CHANNELS)
    groups = channels // width
    start = sample_start(n, channels, pixels)
    mean = load_per_channel(means, n, c, valid, width, groups)
    scale = load_per_channel(rstds, n, c, valid, width, groups) * load_weight(weight, c, valid)[None, :]
    b = load_bias(bias, c, valid)[None, :]
    for i in range(0, tiles):
        p = (chunk * tiles + i) * PIXELS + tl.arange(0, PIXELS)
        offsets, mask = tile_offsets(p, c, valid, channels, pixels, CHANNELS_LAST)
        z = tl.fma(read(x, start, offsets, mask) - mean, scale, b)
        write(y, start, offsets, mask, add_and_relu(z, residual, start, offsets, mask, RELU))


@triton.jit(do_not_specialize=_SIZES)
def gradient_sums(
    dy, x, y, means, rstds, weight, bias, dresidual, work, counters,
    channels, pixels, width, chunks, tiles, piece, blocks_per_part, samples,
    CHANNELS_LAST: tl.constexpr, ALIGNMENT: tl.constexpr, RELU: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Sum g * (x - mean) * rstd and g over the pixels, where g is the gradient of the ReLU's input.

    g is also stored into ``dresidual``, if that is not None. ``work`` has room for the averages of weight * sums
    over each group (N, 2, G), which :func:`apply_gradient` needs, then the sums of each chunk and channel
    (N, chunks, 2, C), of which it makes dL/dweight and dL/dbias, then those of each piece (N, chunks, 2, C / piece).
    """
    channels, pixels = align(channels, pixels, CHANNELS_LAST, ALIGNMENT)
    n, chunk, block, c, valid = _program_part(tl.program_id(0), channels, chunks, CHANNELS)
    groups = channels // width
    start = sample_start(n, channels, pixels)
    mean = load_per_channel(means, n, c, valid, width, groups)
    rstd = load_per_channel(rstds, n, c, valid, width, groups)
    scale = rstd * load_weight(weight, c, valid)[None, :]
    b = load_bias(bias, c, valid)[None, :]
    dweight = tl.zeros((PIXELS, CHANNELS), tl.float32)
    dbias = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for i in range(0, tiles):
        p = (chunk * tiles + i) * PIXELS + tl.arange(0, PIXELS)
        offsets, mask = tile_offsets(p, c, valid, channels, pixels, CHANNELS_LAST)
        centered = read(x, start, offsets, mask) - mean
        g = read(dy, start, offsets, mask)
        if RELU:
            g = relu_backward(g, y, centered, scale, b, start, offsets, mask)
        if dresidual is not None:
            write(dresidual, start, offsets, mask, g)
        dweight += g * (centered * rstd)
        dbias += g
    averages = work
    work += samples.to(tl.int64) * groups * 2
    row = _row(work, n, chunk, channels, chunks)
    store_pairs(row, c, valid, channels, tl.sum(dweight, 0), tl.sum(dbias, 0))
    tl.debug_barrier()

    pieces, first_piece, last = _pieces_of_block(block, channels, piece, CHANNELS)
    work += samples.to(tl.int64) * chunks * channels * 2
    row_of_pieces = _row(work, n, chunk, pieces, chunks)
    for first in range(first_piece, last, GROUPS):
        slope, shift = group_sums(row, weight, first, last, channels, piece, GROUPS, WIDTH)
        index = first + tl.arange(0, GROUPS)
        store_pairs(row_of_pieces, index, index < last, pieces, slope, shift)

    is_last, first, last = _part_if_last(counters, n, block, channels, chunks, blocks_per_part, CHANNELS)
    if is_last:
        _finish_sums(
            _row(work, n, 0, pieces, chunks), averages + n * groups * 2, first // width, last // width, groups, pixels,
            width, chunks, piece, pieces, ROWS, GROUPS,
        )  # fmt: skip


@triton.jit
def _finish_sums(
    rows, averages, first_group, last_group, groups, pixels, width, chunks, piece, pieces,
    ROWS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Store the averages of some groups into ``averages`` (2, G), given the pieces of each chunk."""
    size = (width * pixels).to(tl.float32)
    for first in range(first_group, last_group, GROUPS):
        slope = tl.zeros((ROWS, GROUPS), tl.float32)
        shift = tl.zeros((ROWS, GROUPS), tl.float32)
        for i in range(0, chunks, ROWS):
            for k in range(0, width // piece):
                more_slope, more_shift, mask = _load_pieces(
                    rows, i, k, first, last_group, chunks, width // piece, pieces, ROWS, GROUPS
                )
                slope += more_slope
                shift += more_shift
        g = first + tl.arange(0, GROUPS)
        store_pairs(averages, g, g < last_group, groups, tl.sum(slope, 0) / size, tl.sum(shift, 0) / size)


@triton.jit(do_not_specialize=[*_SIZES, "programs"])
def apply_gradient(
    g, x, means, rstds, weight, bias, work, dx, daffine, channels, pixels, width, chunks, tiles, samples, programs,
    CHANNELS_LAST: tl.constexpr, ALIGNMENT: tl.constexpr, RELU: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Compute dx, and dL/dweight and dL/dbias in ``daffine`` (2, C), from ``work`` of :func:`gradient_sums`.

    The first ``programs`` programs compute dx, in the reverse order of chunks as in :func:`apply`; the other ones
    compute ``daffine``. ``g`` is the gradient of the ReLU's input. If RELU, ``g`` is dL/dy instead, and the
    ReLU's mask is computed from x.
    """
    channels, pixels = align(channels, pixels, CHANNELS_LAST, ALIGNMENT)
    groups = channels // width
    pid = programs - 1 - tl.program_id(0)
    if pid < 0:
        rows = work + samples.to(tl.int64) * groups * 2
        _sum_chunks(rows, daffine, -1 - pid, samples * chunks, channels, ROWS, GROUPS)
    else:
        n, chunk, block, c, valid = _program_part(pid, channels, chunks, CHANNELS)
        start = sample_start(n, channels, pixels)
        mean = load_per_channel(means, n, c, valid, width, groups)
        rstd = load_per_channel(rstds, n, c, valid, width, groups)
        slope, shift = load_averages(work + n * groups * 2, c, valid, width, groups)
        w, b = load_weight(weight, c, valid)[None, :], load_bias(bias, c, valid)[None, :]
        for i in range(0, tiles):
            p = (chunk * tiles + i) * PIXELS + tl.arange(0, PIXELS)
            offsets, mask = tile_offsets(p, c, valid, channels, pixels, CHANNELS_LAST)
            centered = read(x, start, offsets, mask) - mean
            gradient = read(g, start, offsets, mask)
            if RELU:
                gradient = relu_backward(gradient, None, centered, rstd * w, b, start, offsets, mask)
            write(dx, start, offsets, mask, rstd * (w * gradient - shift - centered * rstd * slope))


@triton.jit
def _sum_chunks(pairs, sums, block, rows, channels, ROWS: tl.constexpr, LANES: tl.constexpr):
    """Store the sums over all rows of ``pairs`` (rows, 2, C) into ``sums`` (2, C), for a block of LANES channels."""
    c = block * LANES + tl.arange(0, LANES)
    first = tl.zeros((ROWS, LANES), tl.float32)
    second = tl.zeros((ROWS, LANES), tl.float32)
    for i in range(0, rows, ROWS):
        row = i + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (c < channels)[None, :]
        address = pairs + row[:, None].to(tl.int64) * (2 * channels) + c[None, :]
        first += tl.load(address, mask, other=0.0)
        second += tl.load(address + channels, mask, other=0.0)
    store_pairs(sums, c, c < channels, channels, tl.sum(first, 0), tl.sum(second, 0))
