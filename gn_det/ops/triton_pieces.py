"""What the Triton kernels share: where a tile lies, and what becomes of its values."""

import triton
import triton.language as tl


@triton.jit
def aligned(channels, pixels, CHANNELS_LAST: tl.constexpr, ALIGNED: tl.constexpr):
    """The sizes; the one that is a row's length as what the compiler sees to be a multiple of ALIGNED."""
    if CHANNELS_LAST:
        channels = channels // ALIGNED * ALIGNED
    else:
        pixels = pixels // ALIGNED * ALIGNED
    return channels, pixels


@triton.jit
def tile(p, c, live, channels, pixels, CHANNELS_LAST: tl.constexpr):
    """Places of pixels p and channels c in the memory of a sample (less than 2^31 elements), and which of them exist."""
    places = p[:, None] * channels + c[None, :] if CHANNELS_LAST else c[None, :] * pixels + p[:, None]
    return places, (p < pixels)[:, None] & live[None, :]


@triton.jit
def sample(n, channels, pixels):
    """Where sample n starts. All samples together may have more than 2^31 elements."""
    return n.to(tl.int64) * channels * pixels


@triton.jit
def read(tensor, start, places, keep):
    """Values of a tile in float32, 0 where there are none."""
    return tl.load(tensor + start + places, keep, other=0.0).to(tl.float32)


@triton.jit
def write(tensor, start, places, keep, values):
    """Store a tile in the tensor's dtype."""
    tl.store(tensor + start + places, values.to(tensor.dtype.element_ty), keep)


@triton.jit
def affine(weight, bias, c, live):
    """Scale and shift of channels c, (1, C): 1 and 0 where there are none."""
    w = tl.full(c.shape, 1.0, tl.float32)
    b = tl.full(c.shape, 0.0, tl.float32)
    if weight is not None:
        w = tl.load(weight + c, live, other=0.0).to(tl.float32)
    if bias is not None:
        b = tl.load(bias + c, live, other=0.0).to(tl.float32)
    return w[None, :], b[None, :]


@triton.jit
def of_group(values, n, c, live, channels, groups):
    """(N, G) -> (1, C): each channel's value of its group in sample n."""
    return tl.load(values + n * groups + c // (channels // groups), live, other=0.0)[None, :]


@triton.jit
def finish(z, residual, start, places, keep, RELU: tl.constexpr):
    """What follows the norm."""
    if residual is not None:
        z += read(residual, start, places, keep)
    if RELU:
        z = tl.where(z < 0, 0.0, z)  # a maximum would turn NaN into 0
    return z


@triton.jit
def before_relu(g, y, centred, scale, b, start, places, keep):
    """dL/d(the ReLU's input): 0 where that is not above 0. It has the sign of y, or is computed again from x - mean."""
    z = tl.fma(centred, scale, b) if y is None else read(y, start, places, keep)
    return tl.where(z <= 0, 0.0, g)
