"""Triton functions that the kernels share: offsets, loads, stores, sums per group, residual and ReLU."""

import triton
import triton.language as tl


@triton.jit
def align(channels, pixels, CHANNELS_LAST: tl.constexpr, ALIGNMENT: tl.constexpr):
    """Return (channels, pixels) so that the compiler knows that ALIGNMENT divides the row length."""
    if CHANNELS_LAST:
        channels = channels // ALIGNMENT * ALIGNMENT
    else:
        pixels = pixels // ALIGNMENT * ALIGNMENT
    return channels, pixels


@triton.jit
def tile_offsets(p, c, valid, channels, pixels, CHANNELS_LAST: tl.constexpr):
    """Return the offsets of pixels p and channels c in a sample, and the mask of existing elements.

    ``valid`` is the mask of the channels. A sample has less than 2^31 elements.
    """
    offsets = p[:, None] * channels + c[None, :] if CHANNELS_LAST else c[None, :] * pixels + p[:, None]
    return offsets, (p < pixels)[:, None] & valid[None, :]


@triton.jit
def sample_start(n, channels, pixels):
    """Return the offset of sample n in 64 bits: all samples together may have over 2^31 elements."""
    return n.to(tl.int64) * channels * pixels


@triton.jit
def read(tensor, start, offsets, mask):
    """Load a tile in float32, with 0 for elements that do not exist."""
    return tl.load(tensor + start + offsets, mask, other=0.0).to(tl.float32)


@triton.jit
def write(tensor, start, offsets, mask, values):
    """Store a tile in the dtype of the tensor."""
    tl.store(tensor + start + offsets, values.to(tensor.dtype.element_ty), mask)


@triton.jit
def load_weight(weight, c, valid):
    """Load the weight of channels c. It is 1 if the layer has none."""
    w = tl.full(c.shape, 1.0, tl.float32)
    if weight is not None:
        w = tl.load(weight + c, valid, other=0.0).to(tl.float32)
    return w


@triton.jit
def load_bias(bias, c, valid):
    """Load the bias of channels c. It is 0 if the layer has none."""
    b = tl.full(c.shape, 0.0, tl.float32)
    if bias is not None:
        b = tl.load(bias + c, valid, other=0.0).to(tl.float32)
    return b


@triton.jit
def load_per_channel(values, n, c, valid, width, groups):
    """Return the value of the group of each channel c in sample n, (1, C), from ``values`` (N, G)."""
    return tl.load(values + n * groups + c // width, valid, other=0.0)[None, :]


@triton.jit
def group_members(first, last, i, width, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """Return a tile (GROUPS, WIDTH) of channels, and the mask of those that exist.

    Row k has the channels i, i + 1, ... of group ``first + k``. Groups from ``last`` on do not exist.
    """
    g = first + tl.arange(0, GROUPS)
    d = i + tl.arange(0, WIDTH)
    return g[:, None] * width + d[None, :], (g < last)[:, None] & (d < width)[None, :]


@triton.jit
def group_statistics(pairs, first, last, channels, width, pixels, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """Return mean and sum of squared deviations of the groups ``first``, ``first + 1``, ..., both (GROUPS).

    ``pairs`` (2, C) has these two numbers for ``pixels`` pixels of each channel (Chan et al., 1979). Groups from
    ``last`` on do not exist.
    """
    total = tl.zeros((GROUPS, WIDTH), tl.float32)
    for i in range(0, width, WIDTH):
        c, mask = group_members(first, last, i, width, GROUPS, WIDTH)
        total += tl.load(pairs + c, mask, other=0.0)
    mean = tl.sum(total, 1) / width
    total = tl.zeros((GROUPS, WIDTH), tl.float32)
    for i in range(0, width, WIDTH):
        c, mask = group_members(first, last, i, width, GROUPS, WIDTH)
        d = tl.load(pairs + c, mask, other=0.0) - mean[:, None]
        total += tl.where(mask, tl.load(pairs + channels + c, mask, other=0.0) + pixels * d * d, 0.0)
    return mean, tl.sum(total, 1)


@triton.jit
def group_sums(pairs, weight, first, last, channels, width, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """Return the sums over the channels of each group of weight * pairs, both (GROUPS).

    ``pairs`` (2, C) has two sums for each channel. The groups are those of :func:`group_statistics`.
    """
    slope = tl.zeros((GROUPS, WIDTH), tl.float32)
    shift = tl.zeros((GROUPS, WIDTH), tl.float32)
    for i in range(0, width, WIDTH):
        c, mask = group_members(first, last, i, width, GROUPS, WIDTH)
        w = load_weight(weight, c, mask)
        slope += w * tl.load(pairs + c, mask, other=0.0)
        shift += w * tl.load(pairs + channels + c, mask, other=0.0)
    return tl.sum(slope, 1), tl.sum(shift, 1)


@triton.jit
def store_pairs(pairs, index, valid, length, first, second):
    """Store two numbers for each index into ``pairs`` (2, length)."""
    tl.store(pairs + index, first, valid)
    tl.store(pairs + length + index, second, valid)


@triton.jit
def load_averages(averages, c, valid, width, groups):
    """Return the two numbers of the group of each channel c, both (1, C), from ``averages`` (2, G)."""
    address = averages + c // width
    return tl.load(address, valid, other=0.0)[None, :], tl.load(address + groups, valid, other=0.0)[None, :]


@triton.jit
def add_and_relu(z, residual, start, offsets, mask, RELU: tl.constexpr):
    """Add the residual, if there is one, and apply the ReLU, if RELU."""
    if residual is not None:
        z += read(residual, start, offsets, mask)
    if RELU:
        z = tl.where(z < 0, 0.0, z)  # a maximum would turn NaN into 0
    return z


@triton.jit
def relu_backward(g, y, centered, scale, b, start, offsets, mask):
    """Return the gradient of the ReLU's input, given the gradient g of its output.

    The gradient is 0 where the input is not above 0. The input has the sign of y; if y was not saved,
    the input is computed again from x - mean.
    """
    z = tl.fma(centered, scale, b) if y is None else read(y, start, offsets, mask)
    return tl.where(z <= 0, 0.0, g)
