"""Triton kernels of RoIAlign (He et al., Mask R-CNN, 2017) for channels_last feature maps.

A program computes one bin of one RoI, for all channels. It does nothing if the RoI belongs to another level of
the pyramid, so that a launch per level needs no list of the RoIs of that level. Coordinates are float32 in any dtype
of the features. The points and weights are those of torchvision's ``roi_align``.

Shapes: N images, C channels, H x W pixels of a feature map, R RoIs, h x w bins.
"""

import triton
import triton.language as tl

_SIZES = ["channels", "height", "width", "stride_n", "stride_h", "stride_w", "level", "bins_h", "bins_w", "samples"]


@triton.jit
def _axis(roi, begin, end, bins, index, scale, offset, samples, smallest):
    """Return the first point of a bin along one axis, the distance of its points, and their number.

    Args:
        roi: the address of the RoI (5): image, x0, y0, x1, y1.
        begin, end: the positions of the two coordinates in it.
        smallest: the smallest size of a RoI in pixels of the feature map.
    """
    start = tl.load(roi + begin) * scale - offset
    length = tl.maximum(tl.load(roi + end) * scale - offset - start, smallest) / bins
    number = samples if samples > 0 else tl.ceil(length).to(tl.int32)
    step = length / tl.maximum(number, 1)
    return start + index * length + 0.5 * step, step, number


@triton.jit
def _neighbors(point, length):
    """Return the two pixels beside a point, the weight of the second one, and that of the point: 0 outside of the map."""
    inside = tl.where(point < -1.0, 0.0, 1.0) * tl.where(point > length, 0.0, 1.0)
    point = tl.maximum(point, 0.0)
    low = tl.minimum(point.to(tl.int32), length - 1)
    fraction = tl.where(low < length - 1, point - low, 0.0)
    return low, tl.minimum(low + 1, length - 1), fraction, inside


@triton.jit
def _points(roi, bins_h, bins_w, scale, offset, samples, smallest):
    """Return what :func:`_axis` returns for the bin of this program, along y and along x."""
    row, column = tl.program_id(0) // bins_w % bins_h, tl.program_id(0) % bins_w
    first_y, step_y, count_y = _axis(roi, 2, 4, bins_h, row, scale, offset, samples, smallest)
    first_x, step_x, count_x = _axis(roi, 1, 3, bins_w, column, scale, offset, samples, smallest)
    return first_y, step_y, count_y, first_x, step_x, count_x


@triton.jit
def _aligned(number, ALIGNMENT: tl.constexpr):
    """Return the number so that the compiler knows that ALIGNMENT divides it."""
    return number // ALIGNMENT * ALIGNMENT


@triton.jit(do_not_specialize=_SIZES)
def pool(
    x, rois, levels, y, channels, height, width, stride_n, stride_h, stride_w, level, bins_h, bins_w, samples,
    scale, offset, smallest, ALIGNMENT: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Store the bins of the RoIs of one level into y (R, h, w, C)."""
    r = tl.program_id(0) // (bins_h * bins_w)
    if tl.load(levels + r) == level:
        channels = _aligned(channels, ALIGNMENT)
        stride_n, stride_h = _aligned(stride_n, ALIGNMENT), _aligned(stride_h, ALIGNMENT)
        stride_w = _aligned(stride_w, ALIGNMENT)
        roi = rois + r * 5
        first_y, step_y, count_y, first_x, step_x, count_x = _points(
            roi, bins_h, bins_w, scale, offset, samples, smallest
        )
        image = x + tl.load(roi).to(tl.int64) * stride_n
        bin = y + tl.program_id(0).to(tl.int64) * channels
        for first in range(0, channels, CHANNELS):
            c = first + tl.arange(0, CHANNELS)
            total = tl.zeros((CHANNELS,), tl.float32)
            for i in range(0, count_y):
                low_y, high_y, fraction_y, inside_y = _neighbors(first_y + i * step_y, height)
                upper, lower = image + low_y * stride_h + c, image + high_y * stride_h + c
                for j in range(0, count_x):
                    low_x, high_x, fraction_x, inside_x = _neighbors(first_x + j * step_x, width)
                    mask = c < channels
                    above = (1 - fraction_x) * tl.load(upper + low_x * stride_w, mask, other=0.0).to(tl.float32)
                    above += fraction_x * tl.load(upper + high_x * stride_w, mask, other=0.0).to(tl.float32)
                    below = (1 - fraction_x) * tl.load(lower + low_x * stride_w, mask, other=0.0).to(tl.float32)
                    below += fraction_x * tl.load(lower + high_x * stride_w, mask, other=0.0).to(tl.float32)
                    total += inside_y * inside_x * ((1 - fraction_y) * above + fraction_y * below)
            total /= tl.maximum(count_y * count_x, 1)
            tl.store(bin + c, total.to(y.dtype.element_ty), c < channels)


@triton.jit(do_not_specialize=_SIZES)
def spread(
    dy, rois, levels, dx, channels, height, width, stride_n, stride_h, stride_w, level, bins_h, bins_w, samples,
    scale, offset, smallest, ALIGNMENT: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Add the gradient of the features to dx, in float32, given that of the bins, dy (R, h, w, C).

    RoIs overlap, so the order of the sums, and with it their rounding, differs between runs, as in torchvision.
    """
    r = tl.program_id(0) // (bins_h * bins_w)
    if tl.load(levels + r) == level:
        channels = _aligned(channels, ALIGNMENT)
        stride_n, stride_h = _aligned(stride_n, ALIGNMENT), _aligned(stride_h, ALIGNMENT)
        stride_w = _aligned(stride_w, ALIGNMENT)
        roi = rois + r * 5
        first_y, step_y, count_y, first_x, step_x, count_x = _points(
            roi, bins_h, bins_w, scale, offset, samples, smallest
        )
        image = dx + tl.load(roi).to(tl.int64) * stride_n
        bin = dy + tl.program_id(0).to(tl.int64) * channels
        for first in range(0, channels, CHANNELS):
            c = first + tl.arange(0, CHANNELS)
            g = tl.load(bin + c, c < channels, other=0.0).to(tl.float32) / tl.maximum(count_y * count_x, 1)
            for i in range(0, count_y):
                low_y, high_y, fraction_y, inside_y = _neighbors(first_y + i * step_y, height)
                upper, lower = image + low_y * stride_h + c, image + high_y * stride_h + c
                for j in range(0, count_x):
                    low_x, high_x, fraction_x, inside_x = _neighbors(first_x + j * step_x, width)
                    mask = c < channels
                    above = inside_y * inside_x * (1 - fraction_y) * g
                    below = inside_y * inside_x * fraction_y * g
                    tl.atomic_add(upper + low_x * stride_w, (1 - fraction_x) * above, mask, sem="relaxed")
                    tl.atomic_add(upper + high_x * stride_w, fraction_x * above, mask, sem="relaxed")
                    tl.atomic_add(lower + low_x * stride_w, (1 - fraction_x) * below, mask, sem="relaxed")
                    tl.atomic_add(lower + high_x * stride_w, fraction_x * below, mask, sem="relaxed")
