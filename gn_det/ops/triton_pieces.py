"""Triton functions that the kernels share: offsets, loads, stores, residual and ReLU."""

import triton
import triton.language as tl


@triton.jit
def assume_alignment(channels, pixels, CHANNELS_LAST: tl.constexpr, ALIGNMENT: tl.constexpr):
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
def load_affine(weight, bias, c, valid):
    """Load weight and bias of channels c, both (1, C). They are 1 and 0 if the layer has none."""
    w = tl.full(c.shape, 1.0, tl.float32)
    b = tl.full(c.shape, 0.0, tl.float32)
    if weight is not None:
        w = tl.load(weight + c, valid, other=0.0).to(tl.float32)
    if bias is not None:
        b = tl.load(bias + c, valid, other=0.0).to(tl.float32)
    return w[None, :], b[None, :]


@triton.jit
def load_per_channel(values, n, c, valid, channels, groups):
    """Return the value of the group of each channel c in sample n, (1, C), from ``values`` (N, G)."""
    return tl.load(values + n * groups + c // (channels // groups), valid, other=0.0)[None, :]


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
