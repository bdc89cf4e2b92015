"""The part of each image in a padded batch, and group normalization within it."""

import pytest
import torch
import torch.nn.functional as F

from gn_det.modeling.norm import GroupNorm
from gn_det.ops import FusedGroupNorm
from gn_det.ops.padding import Extents, clear_padding, current_extents, extents_in_use, within_rectangles

EXTENTS = Extents(padded=(96, 128), sizes=((96, 64), (32, 128)))


def feature_map(stride: int, channels: int = 8, **options) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, 96 // stride, 128 // stride, generator=generator, **options)


@pytest.mark.parametrize(
    ("shape", "rectangles"),
    [((96, 128), [(96, 64), (32, 128)]), ((24, 32), [(24, 16), (8, 32)]), ((2, 2), [(2, 1), (1, 2)])],
)
def test_rectangles_follow_from_the_shape_of_a_map(shape, rectangles):
    assert EXTENTS.rectangles(torch.zeros(2, 1, *shape)) == rectangles


def test_sides_that_no_stride_divides_are_rounded_up():
    extents = Extents(padded=(75, 99), sizes=((75, 70), (41, 99)))
    assert extents.rectangles(torch.zeros(2, 1, 5, 7)) == [(5, 5), (3, 7)]


@pytest.mark.parametrize("shape", [(20, 32), (24, 33), (96, 64)])
def test_map_of_another_batch_is_an_error(shape):
    with pytest.raises(ValueError, match="is not a feature map of images of"):
        EXTENTS.rectangles(torch.zeros(2, 1, *shape))


def test_extents_are_in_use_within_the_block_only():
    assert current_extents() is None
    with extents_in_use(EXTENTS):
        with extents_in_use(None):
            assert current_extents() is None
        assert current_extents() is EXTENTS
    with pytest.raises(KeyError), extents_in_use(EXTENTS):
        raise KeyError
    assert current_extents() is None


def test_clear_padding_and_its_gradient():
    x = feature_map(4).requires_grad_()
    x.data[0, :, :, 16:] = torch.nan  # what is not read may be anything
    with extents_in_use(EXTENTS):
        y = clear_padding(x)
    y.sum().backward()
    assert torch.equal(y[0, :, :, :16], x[0, :, :, :16])
    assert not y[0, :, :, 16:].any()
    assert not x.grad[1, :, 8:].any()
    assert x.grad[1, :, :8].eq(1).all()


def test_clear_padding_without_a_gradient_is_in_place():
    x = feature_map(4)
    x[1, :, 8:] = torch.nan
    with extents_in_use(EXTENTS):
        y = clear_padding(x)
    assert y is x
    assert torch.equal(y[1, :, :8], feature_map(4)[1, :, :8])
    assert not y[1, :, 8:].any()
    assert not y[0, :, :, 16:].any()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("layer", [GroupNorm(4, 8), FusedGroupNorm(4, 8, activation="relu")])
def test_norm_is_that_of_each_image_alone(layer, memory_format):
    """In float64, with gradients."""
    layer = layer.double()
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x = feature_map(4, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    dy = torch.randn(x.shape, dtype=torch.float64)
    with extents_in_use(EXTENTS):
        y = layer(x)
        (gradient,) = torch.autograd.grad(y, x, dy)
    assert y.is_contiguous(memory_format=memory_format)
    for image, (h, w) in enumerate(EXTENTS.rectangles(x)):
        alone = x.detach()[image : image + 1, :, :h, :w].clone().requires_grad_()
        expected = F.group_norm(alone, 4, layer.weight, layer.bias, layer.eps)
        expected = expected.relu() if getattr(layer, "activation", None) else expected
        (expected_gradient,) = torch.autograd.grad(expected, alone, dy[image : image + 1, :, :h, :w])
        for found, part in ((y, expected), (gradient, expected_gradient)):
            assert torch.allclose(found[image : image + 1, :, :h, :w], part, rtol=1e-10, atol=1e-12)
            assert not found[image, :, h:].any()
            assert not found[image, :, :, w:].any()


def test_residual_of_the_padding_is_left_out():
    layer = FusedGroupNorm(4, 8, activation="relu")
    x, residual = feature_map(4), feature_map(4).abs() + 1
    with extents_in_use(EXTENTS):
        y = layer(x, residual)
    assert not y[0, :, :, 16:].any()
    assert torch.equal(y[:1, :, :, :16], layer(x[:1, :, :, :16], residual[:1, :, :, :16]))


def test_within_rectangles_calls_the_function_once_per_image():
    shapes = []
    with extents_in_use(EXTENTS):
        within_rectangles(lambda x, _: shapes.append(tuple(x.shape)) or x, feature_map(8))
    assert shapes == [(1, 8, 12, 8), (1, 8, 4, 16)]
