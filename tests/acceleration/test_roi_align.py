"""RoIAlign by rows compared with torchvision's RoIAlign."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import nn
from torchvision.ops import roi_align

from gn_det.acceleration.roi_align import RowROIPooler, roi_align_rows, use_row_poolers


def boxes(number: int, images: int, height: int, width: int) -> torch.Tensor:
    """Return boxes inside the image, across its edges, outside it, of zero size, and with swapped corners."""
    corner = torch.rand(number, 2) * torch.tensor([width * 1.4, height * 1.4]) - 0.2 * torch.tensor([width, height])
    size = torch.rand(number, 2) * torch.tensor([width, height]) * 0.7
    size[::7] = 0
    size[1::7] *= -1
    index = torch.randint(images, (number, 1)).float()
    return torch.cat([index, corner, corner + size], dim=1)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize("size", [(7, 7), (14, 14), (3, 5)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_roi_align_rows_matches_torchvision(aligned, samples, size, layout):
    x = torch.randn(2, 8, 25, 38).to(memory_format=layout)
    rois = boxes(60, 2, 100, 152)
    got = roi_align_rows(x, rois, size, 0.25, samples, aligned)
    torch.testing.assert_close(got, roi_align(x, rois, size, 0.25, samples, aligned), rtol=1e-5, atol=1e-5)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_roi_align_rows_matches_torchvision_on_large_maps():
    """Large coordinates leave few digits for the weights, so the order of operations must be torchvision's."""
    x = torch.randn(1, 4, 200, 304)
    rois = boxes(300, 1, 800, 1216)
    expected = roi_align(x, rois, 7, 0.25, 2, False)
    torch.testing.assert_close(roi_align_rows(x, rois, (7, 7), 0.25, 2, False), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3, 1, 9), (1, 3, 2, 2)])
def test_roi_align_rows_matches_torchvision_on_small_maps(shape):
    x, rois = torch.randn(shape), boxes(20, 1, 4 * shape[2], 4 * shape[3])
    torch.testing.assert_close(roi_align_rows(x, rois, (2, 2), 0.25, 2, True), roi_align(x, rois, 2, 0.25, 2, True))


def test_roi_align_rows_keeps_bfloat16():
    x, rois = torch.randn(1, 8, 20, 20), boxes(30, 1, 80, 80)
    got = roi_align_rows(x.bfloat16(), rois, (7, 7), 0.25, 2, False)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), roi_align(x, rois, 7, 0.25, 2, False), rtol=0.05, atol=0.05)


def pooler(samples: int, levels: int = 3) -> nn.Sequential:
    scales = [1 / 2**level for level in range(2, 2 + levels)]
    return nn.Sequential(ROIPooler(7, scales, samples, "ROIAlignV2"))


def maps(levels: int = 3) -> list[torch.Tensor]:
    return [torch.randn(2, 8, 80 // 2**level, 120 // 2**level) for level in range(levels)]


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("samples", [0, 2])
@pytest.mark.parametrize("numbers", [(9, 4), (0, 3), (0, 0)])
def test_row_pooler_matches_roi_pooler(levels, samples, numbers):
    model, x = pooler(samples, levels), [level.requires_grad_() for level in maps(levels)]
    lists = [Boxes(boxes(number, 1, 320, 480)[:, 1:].view(-1, 2, 2).sort(dim=1)[0].view(-1, 4)) for number in numbers]
    expected = model[0](x, lists)
    assert use_row_poolers(model) == 1 and use_row_poolers(model) == 0
    assert isinstance(model[0], ROIPooler) and type(model[0]) is RowROIPooler
    with_gradient = model[0](x, lists)
    assert with_gradient.requires_grad == expected.requires_grad and torch.equal(with_gradient, expected)
    with torch.no_grad():
        without_gradient = model[0](x, lists)
    torch.testing.assert_close(without_gradient, expected, rtol=1e-5, atol=1e-5)
    channels_last = without_gradient.is_contiguous(memory_format=torch.channels_last)
    by_rows = samples > 0 and sum(numbers) > 0
    assert (channels_last and not without_gradient.is_contiguous()) == by_rows


def test_row_pooler_does_not_round_coordinates():
    """detectron2 rounds them to the dtype of the features: in bfloat16, near 1000 pixels, to a multiple of 4."""
    model, x = pooler(2, 1), [torch.arange(120.0).expand(1, 1, 80, 120).bfloat16()]
    lists = [Boxes(torch.tensor([[401.0, 101.0, 409.0, 109.0]]))]
    use_row_poolers(model)
    with torch.no_grad():
        middle = model[0](x, lists)[0, 0, 3, 3]
    assert abs(middle.item() - (405 / 4 - 0.5)) <= 0.5  # half the spacing of bfloat16 numbers near 100


def test_use_row_poolers_changes_box_and_mask_pooler(tiny_cfg):
    model = build_model(tiny_cfg("quickstart_R18_FPN_gn_scratch"))
    keys = list(model.state_dict())
    assert use_row_poolers(model) == 2
    assert list(model.state_dict()) == keys
