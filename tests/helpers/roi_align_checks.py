"""Checks of the RoIAlign kernels in Triton's interpreter, run by test_triton_kernels.py in a separate process."""

import os

import pytest
import torch
from torchvision.ops import roi_align

from gn_det.ops.roi_align import roi_align_levels

assert os.environ["TRITON_INTERPRET"] == "1"

# In pixels of the image: inside, empty, at the border, outside, larger than the image, narrow
BOXES = [[3, 5, 20, 17], [8, 8, 8, 8], [-6, -4, 9, 50], [70, 70, 90, 80], [-50, -50, 120, 120], [10, 1, 10.5, 39]]
SCALES = (0.25, 0.125)


def make(channels: int = 5) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Return two levels of features of two images of 48 x 40 pixels, the RoIs, and their levels."""
    torch.manual_seed(0)
    features = [torch.randn(2, channels, 12, 10), torch.randn(2, channels, 6, 5)]
    boxes = torch.tensor(BOXES * 2)
    images = torch.arange(len(boxes)) % 2
    return features, torch.cat([images[:, None], boxes], 1).float(), torch.arange(len(boxes)) % 3 % 2


def expected(features, rois, levels, size, samples, aligned) -> torch.Tensor:
    """Return what torchvision computes."""
    pooled = torch.zeros(len(rois), features[0].shape[1], *size, dtype=features[0].dtype)
    for level, (x, scale) in enumerate(zip(features, SCALES, strict=True)):
        of_level = (levels == level).nonzero()[:, 0]
        pooled = pooled.index_put((of_level,), roi_align(x, rois[of_level], size, scale, samples, aligned))
    return pooled


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("samples", [0, 2])
@pytest.mark.parametrize("layout", ["NCHW", "channels_last", "crop"])
def test_forward_and_backward_equal_torchvision(aligned, samples, layout):
    features, rois, levels = make()
    if layout == "channels_last":
        features = [x.contiguous(memory_format=torch.channels_last) for x in features]
    elif layout == "crop":
        features = [
            torch.nn.functional.pad(x, (0, 3, 0, 2)).contiguous(memory_format=torch.channels_last) for x in features
        ]
        features = [x[:, :, :-2, :-3] for x in features]
    features = [x.detach().requires_grad_() for x in features]
    y = roi_align_levels(features, rois, levels, (3, 2), SCALES, samples, aligned)
    y_expected = expected(features, rois, levels, (3, 2), samples, aligned)
    torch.testing.assert_close(y, y_expected, rtol=1e-5, atol=1e-5)
    assert y.is_contiguous(memory_format=torch.channels_last)
    dy = torch.randn_like(y_expected)
    found, reference = (torch.autograd.grad(out, features, dy) for out in (y, y_expected))
    for a, b in zip(found, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_half_precision_keeps_exact_coordinates():
    """A coordinate near 1000 pixels would be rounded to a multiple of 4 in bfloat16."""
    x = torch.arange(300.0).repeat(1, 8, 4, 1).contiguous(memory_format=torch.channels_last)
    rois = torch.tensor([[0, 1001.0, 4, 1005.0, 8]])
    y = roi_align_levels([x.half()], rois, torch.zeros(1, dtype=torch.int64), (1, 1), (0.25,), 2, True)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), torch.full((1, 8, 1, 1), 1003 * 0.25 - 0.5), rtol=0, atol=0.13)


def test_no_rois():
    features, rois, levels = make()
    features = [x.requires_grad_() for x in features]
    y = roi_align_levels(features, rois[:0], levels[:0], (7, 7), SCALES, 2, False)
    assert y.shape == (0, 5, 7, 7)
    assert all(not g.any() for g in torch.autograd.grad(y.sum(), features))
