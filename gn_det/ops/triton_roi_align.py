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
def _position(bins_h, bins_w):
    """Return the RoI of this program, and the row and column of its bin."""
    pid = tl.program_id(0)
    return pid // (bins_h * bins_w), pid // bins_w % bins_h, pid % bins_w


@triton.jit(do_not_specialize=_SIZES)
def pool(
    x, rois, levels, y, channels, height, width, stride_n, stride_h, stride_w, level, bins_h, bins_w, samples,
    scale, offset, smallest, ALIGNMENT: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Store the bins of the RoIs of one level into y (R, h, w, C)."""
    r, row, column = _position(bins_h, bins_w)
    if tl.load(levels + r) == level:
        channels = channels // ALIGNMENT * ALIGNMENT
        roi = rois + r * 5
        first_y, step_y, count_y = _axis(roi, 2, 4, bins_h, row, scale, offset, samples, smallest)
        first_x, step_x, count_x = _axis(roi, 1, 3, bins_w, column, scale, offset, samples, smallest)
        image = x + tl.load(roi).to(tl.int64) * (stride_n // ALIGNMENT * ALIGNMENT)
        bin = y + tl.program_id(0).to(tl.int64) * channels
        for first in range(0, channels, CHANNELS):
            c = first + tl.arange(0, CHANNELS)
            total = tl.zeros((CHANNELS,), tl.float32)
            for i in range(0, count_y):
                low_y, high_y, fraction_y, inside_y = _neighbors(first_y + i * step_y, height)
                low_y, high_y = (
                    low_y * (stride_h // ALIGNMENT * ALIGNMENT),
                    high_y * (stride_h // ALIGNMENT * ALIGNMENT),
                )
                for j in range(0, count_x):
                    low_x, high_x, fraction_x, inside_x = _neighbors(first_x + j * step_x, width)
                    low_x = low_x * (stride_w // ALIGNMENT * ALIGNMENT)
                    high_x = high_x * (stride_w // ALIGNMENT * ALIGNMENT)
                    mask = c < channels
                    upper = (1 - fraction_x) * tl.load(image + low_y + low_x + c, mask, other=0.0).to(tl.float32)
                    upper += fraction_x * tl.load(image + low_y + high_x + c, mask, other=0.0).to(tl.float32)
                    lower = (1 - fraction_x) * tl.load(image + high_y + low_x + c, mask, other=0.0).to(tl.float32)
                    lower += fraction_x * tl.load(image + high_y + high_x + c, mask, other=0.0).to(tl.float32)
                    total += inside_y * inside_x * ((1 - fraction_y) * upper + fraction_y * lower)
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
    r, row, column = _position(bins_h, bins_w)
    if tl.load(levels + r) == level:
        channels = channels // ALIGNMENT * ALIGNMENT
        roi = rois + r * 5
        first_y, step_y, count_y = _axis(roi, 2, 4, bins_h, row, scale, offset, samples, smallest)
        first_x, step_x, count_x = _axis(roi, 1, 3, bins_w, column, scale, offset, samples, smallest)
        image = dx + tl.load(roi).to(tl.int64) * stride_n
        bin = dy + tl.program_id(0).to(tl.int64) * channels
        for first in range(0, channels, CHANNELS):
            c = first + tl.arange(0, CHANNELS)
            g = tl.load(bin + c, c < channels, other=0.0).to(tl.float32) / tl.maximum(count_y * count_x, 1)
            for i in range(0, count_y):
                low_y, high_y, fraction_y, inside_y = _neighbors(first_y + i * step_y, height)
                for j in range(0, count_x):
                    low_x, high_x, fraction_x, inside_x = _neighbors(first_x + j * step_x, width)
                    mask = c < channels
                    upper, lower = image + low_y * stride_h + c, image + high_y * stride_h + c
                    above = inside_y * inside_x * (1 - fraction_y) * g
                    below = inside_y * inside_x * fraction_y * g
                    tl.atomic_add(upper + low_x * stride_w, (1 - fraction_x) * above, mask, sem="relaxed")
                    tl.atomic_add(upper + high_x * stride_w, fraction_x * above, mask, sem="relaxed")
                    tl.atomic_add(lower + low_x * stride_w, (1 - fraction_x) * below, mask, sem="relaxed")
                    tl.atomic_add(lower + high_x * stride_w, fraction_x * below, mask, sem="relaxed")
