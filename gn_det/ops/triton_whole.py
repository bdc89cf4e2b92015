"""Triton kernels for one pass: a program holds some groups of a sample, of which it reads all once (RoIs, small maps).

Shapes as in ``tiling.py``, on whose tiles ``fused.py`` launches them: PIXELS, GROUPS, WIDTH are those of ``tiling.Whole``.

No size of a tensor is compiled in, which ``do_not_specialize`` says to Triton. ALIGNED alone says something of them: it
divides the length of a row, and so lets a thread read 16 bytes at once. An argument that is None is compiled in as absent.
"""

import triton
import triton.language as tl

from .triton_pieces import affine, aligned, before_relu, finish, of_group, read, sample, tile, write


@triton.jit
def _group_sums(values, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """(GROUPS * WIDTH) -> (GROUPS)."""
    return tl.sum(tl.reshape(values, (GROUPS, WIDTH)), 1)


@triton.jit
def _spread(values, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """(GROUPS) -> (1, GROUPS * WIDTH)."""
    return tl.reshape(tl.broadcast_to(values[:, None], (GROUPS, WIDTH)), (1, GROUPS * WIDTH))


@triton.jit
def _part(channels, groups, GROUPS: tl.constexpr, WIDTH: tl.constexpr, FULL: tl.constexpr):
    """This program's sample, first group and channels, of which there are WIDTH lanes a group; and which lanes hold one."""
    blocks = tl.cdiv(groups, GROUPS)
    first = tl.program_id(0) % blocks * GROUPS
    lane = tl.arange(0, GROUPS * WIDTH)
    if FULL:  # D is a power of two: the lanes are channels side by side
        c = first * WIDTH + lane
        live = c < channels
    else:
        width = channels // groups
        c = (first + lane // WIDTH) * width + lane % WIDTH
        live = (lane % WIDTH < width) & (first + lane // WIDTH < groups)
    return tl.program_id(0) // blocks, first, c, live


@triton.jit(do_not_specialize=["channels", "pixels", "groups"])
def forward(
    x, residual, weight, bias, y, means, rstds, channels, pixels, groups, eps,
    CHANNELS_LAST: tl.constexpr, ALIGNED: tl.constexpr, RELU: tl.constexpr,
    PIXELS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """y; means and rstds (N, G)."""
    channels, pixels = aligned(channels, pixels, CHANNELS_LAST, ALIGNED)
    n, first, c, live = _part(channels, groups, GROUPS, WIDTH, FULL)
    start = sample(n, channels, pixels)
    places, keep = tile(tl.arange(0, PIXELS), c, live, channels, pixels, CHANNELS_LAST)
    size = (channels // groups * pixels).to(tl.float32)

    centred = read(x, start, places, keep)
    mean = tl.zeros((GROUPS,), tl.float32)
    for _ in tl.static_range(2):  # again, as the sum of large values is rounded
        step = _group_sums(tl.sum(centred, 0), GROUPS, WIDTH) / size
        centred = tl.where(keep, centred - _spread(step, GROUPS, WIDTH), 0.0)
        mean += step
    rstd = 1 / tl.sqrt(_group_sums(tl.sum(centred * centred, 0), GROUPS, WIDTH) / size + eps)
    group = first + tl.arange(0, GROUPS)
    tl.store(means + n * groups + group, mean, group < groups)
    tl.store(rstds + n * groups + group, rstd, group < groups)

    w, b = affine(weight, bias, c, live)
    z = tl.fma(centred, _spread(rstd, GROUPS, WIDTH) * w, b)
    write(y, start, places, keep, finish(z, residual, start, places, keep, RELU))


@triton.jit(do_not_specialize=["channels", "pixels", "groups", "samples"])
def backward(
    dy, x, y, means, rstds, weight, bias, dx, dresidual, sums, channels, pixels, groups, samples,
    CHANNELS_LAST: tl.constexpr, ALIGNED: tl.constexpr, RELU: tl.constexpr,
    PIXELS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """dx, dresidual; sums (2, N, C): each sample's part of dL/dweight and dL/dbias."""
    channels, pixels = aligned(channels, pixels, CHANNELS_LAST, ALIGNED)
    n, first, c, live = _part(channels, groups, GROUPS, WIDTH, FULL)
    start = sample(n, channels, pixels)
    places, keep = tile(tl.arange(0, PIXELS), c, live, channels, pixels, CHANNELS_LAST)
    size = (channels // groups * pixels).to(tl.float32)
    rstd = of_group(rstds, n, c, live, channels, groups)
    w, b = affine(weight, bias, c, live)

    centred = read(x, start, places, keep) - of_group(means, n, c, live, channels, groups)
    g = read(dy, start, places, keep)
    if RELU:
        g = before_relu(g, y, centred, rstd * w, b, start, places, keep)
    if dresidual is not None:
        write(dresidual, start, places, keep, g)
    normalised = centred * rstd
    dweight, dbias = tl.sum(g * normalised, 0), tl.sum(g, 0)
    tl.store(sums + n * channels + c, dweight, live)
    tl.store(sums + (samples + n) * channels + c, dbias, live)

    per_lane = tl.reshape(w, (GROUPS * WIDTH,))
    slope = _spread(_group_sums(per_lane * dweight, GROUPS, WIDTH) / size, GROUPS, WIDTH)
    shift = _spread(_group_sums(per_lane * dbias, GROUPS, WIDTH) / size, GROUPS, WIDTH)
    if dx is not None:
        write(dx, start, places, keep, rstd * (w * g - shift - normalised * slope))
