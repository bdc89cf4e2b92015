"""Checks of the Triton kernels in Triton's interpreter, which must be on before Triton is imported.

Therefore test_triton_kernels.py runs pytest on this file in a separate process. The sizes are tiny,
because each program takes milliseconds.
"""

import copy
import os

import pytest
import torch
import triton
import triton.language as tl
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch.autograd.graph import saved_tensors_hooks

from gn_det.acceleration.fuse import fuse
from gn_det.ops import FusedGroupNorm, fused, group_norm, select, tiling
from gn_det.ops.padding import Extents, extents_in_use
from gn_det.ops.triton_pieces import sample_start

assert os.environ["TRITON_INTERPRET"] == "1" and os.environ[select.ENVIRONMENT] == "triton" == select.forced


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


# (N, C, *), groups, memory format, whether there is a residual, activation
CASES = [
    ((1, 96, 5, 7), 32, "last", True, "relu"),  # 3 channels per group
    ((1, 24, 2, 3), 8, "first", False, "relu"),
    ((1, 48, 3, 9), 3, "last", False, "relu"),  # 16 channels per group
    ((1, 48, 3, 9), 3, "first", True, None),
    ((2, 40, 4, 4), 8, "crop", True, "relu"),  # 5 channels per group
    ((2, 12, 6, 5), 1, "last", True, "relu"),
    ((1, 20, 1, 70), 4, "first", False, None),
    ((2, 6, 6, 5), 6, "last", False, None),
    ((2, 6, 6, 5), 6, "first", True, "relu"),
    ((5, 24, 1, 1), 4, "first", True, "relu"),
    ((2, 24), 6, "first", False, "relu"),
    ((2, 6, 2, 3, 5), 3, "last", False, "relu"),
    ((1, 20, 37, 1), 4, "last", True, None),
    ((0, 8, 7, 7), 4, "last", True, "relu"),
]


@pytest.fixture(params=["whole", "split"])
def tile_kind(request, monkeypatch):
    """The kernels of triton_whole.py, or those of triton_split.py as on a GPU with one multiprocessor.

    In the second case chunks have several tiles, and the last chunk is not full.
    """
    if request.param == "split":
        for name, value in (
            ("MAX_ELEMENTS", 0),
            ("TILE_ELEMENTS", 128),
            ("PROGRAMS_PER_PROCESSOR", 8),
        ):
            monkeypatch.setattr(tiling, name, value)
        monkeypatch.setattr(fused, "_multiprocessors", lambda: 1)
    for cached in (tiling.whole_tile, tiling.split_tile, fused._plan):
        cached.cache_clear()
    yield request.param
    for cached in (tiling.whole_tile, tiling.split_tile, fused._plan):
        cached.cache_clear()


def make(shape, layout: str, with_residual: bool, dtype=torch.float32) -> list[torch.Tensor | None]:
    """Return x, weight, bias and residual."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape), torch.contiguous_format)
    x = torch.randn(shape) * 2 + 1
    if layout == "last":
        x = x.contiguous(memory_format=last)
    elif layout == "crop":
        x = torch.randn(*shape[:2], *(size + 2 for size in shape[2:])).contiguous(memory_format=last)[:, :, 1:-1, 1:-1]
    residual = torch.randn(shape).to(dtype) if with_residual else None
    values = [x.to(dtype), torch.randn(shape[1]), torch.randn(shape[1]), residual]
    return [None if value is None else value.requires_grad_() for value in values]


def with_gradients(x, weight, bias, residual, groups, activation, dy) -> list[torch.Tensor]:
    y = group_norm(x, groups, weight, bias, 1e-5, residual, activation)
    inputs = [t for t in (x, weight, bias, residual) if t is not None]
    return [y.detach(), *torch.autograd.grad(y, inputs, dy.to(y.dtype))]


def exact(values, groups, activation, dy) -> list[torch.Tensor]:
    """The result in float64, for which the reference implementation runs."""
    wide = [None if t is None else t.detach().double().requires_grad_() for t in values]
    return with_gradients(*wide, groups, activation, dy)


@pytest.mark.parametrize(("shape", "groups", "layout", "with_residual", "activation"), CASES)
def test_forward_and_backward(tile_kind, shape, groups, layout, with_residual, activation):
    values = make(shape, layout, with_residual)
    dy = torch.randn(shape)
    got = with_gradients(*values, groups, activation, dy)
    for a, b in zip(got, exact(values, groups, activation, dy), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
    last = layout != "first" and values[0].dim() == 4
    assert (
        got[0].is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format) or layout == "last"
    )


def test_split_case_has_several_tiles_and_chunks(tile_kind):
    for sizes in (tiling.Sizes(1, 96, 35, 32, True, 4), tiling.Sizes(1, 20, 70, 4, False, 4)):
        if tile_kind == "split":
            split = tiling.split_tile(sizes, 1)
            assert tiling.whole_tile(sizes, 1) is None and split.tiles > 1 and split.chunks > 1
            assert sizes.pixels % (split.tiles * split.pixels)
        else:
            assert tiling.whole_tile(sizes, 2) is not None


@pytest.mark.parametrize(("dtype", "with_residual"), [(torch.bfloat16, True), (torch.float16, False)])
def test_half_precision(tile_kind, dtype, with_residual):
    """The results equal those in float64, rounded to the dtype."""
    values = make((2, 16, 4, 5), "last", with_residual, dtype)
    dy = torch.randn(2, 16, 4, 5).to(dtype)
    got = with_gradients(*values, 4, "relu", dy)
    assert got[0].dtype == got[1].dtype == dtype
    for a, b in zip(got, exact(values, 4, "relu", dy), strict=True):
        torch.testing.assert_close(a.double(), b.to(a.dtype).double(), rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_large_mean_causes_no_cancellation(tile_kind):
    _, weight, bias, _ = make((1, 4, 8, 12), "last", False)
    x = 1000 + torch.randn(1, 4, 8, 12)
    y = group_norm(x, 2, weight, bias)
    want = group_norm(x.double(), 2, weight.double(), bias.double())
    torch.testing.assert_close(y.double(), want, rtol=0, atol=2e-4)  # float32 has a resolution of 6e-5 at 1000


def test_weight_and_bias_are_optional(tile_kind):
    x, _, bias, residual = make((2, 8, 3, 5), "last", True)
    dy = torch.randn(2, 8, 3, 5)
    for values in ((x, None, None, residual), (x, None, bias, None)):
        got = with_gradients(*values, 4, "relu", dy)
        for a, b in zip(got, exact(values, 4, "relu", dy), strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("required", ["x", "residual bias"])
def test_only_required_gradients_are_computed(tile_kind, required):
    values = make((2, 8, 3, 5), "last", True)
    dy = torch.randn(2, 8, 3, 5)
    all_gradients = with_gradients(*values, 4, "relu", dy)[1:]
    names = ("x", "weight", "bias", "residual")
    for name, value in zip(names, values, strict=True):
        value.requires_grad_(name in required.split())
    group_norm(*values[:1], 4, *values[1:3], 1e-5, values[3], "relu").backward(dy)
    for name, value, gradient in zip(names, values, all_gradients, strict=True):
        assert (value.grad is not None) == (name in required.split())
        assert value.grad is None or torch.equal(value.grad, gradient)


def test_nan_is_propagated(tile_kind):
    x = torch.randn(2, 8, 3, 5)
    x[0, 0, 0, 0] = float("nan")
    y = group_norm(x, 4, activation="relu")
    assert y[0, :2].isnan().all() and y[0, 2:].isfinite().all() and y[1].isfinite().all()


@pytest.mark.parametrize("with_residual", [False, True])
def test_saved_tensors(with_residual):
    """With a residual y is saved for the ReLU's mask; without one the mask is computed from x again."""
    x, weight, bias, residual = make((2, 8, 3, 5), "last", with_residual, torch.bfloat16)
    saved = []
    with saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        y = group_norm(x, 4, weight, bias, residual=residual, activation="relu")
    maps = 2 if with_residual else 1
    affine = 1 if with_residual else 2
    assert (
        sorted(t.numel() * t.element_size() for t in saved)
        == [2 * 4 * 4] * 2 + [8 * 4] * affine + [x.numel() * 2] * maps
    )
    pointers = {t.data_ptr() for t in saved if t.dim() == 4}
    assert pointers == ({x.data_ptr(), y.data_ptr()} if with_residual else {x.data_ptr()})


def test_fused_block_matches_unfused(tile_kind):
    block = BottleneckBlock(4, 16, bottleneck_channels=8, norm=lambda channels: torch.nn.GroupNorm(4, channels))
    fused_block = copy.deepcopy(block)
    assert fuse(fused_block) == 4
    x = torch.randn(1, 4, 3, 5).contiguous(memory_format=torch.channels_last)
    results = []
    for module in (block, fused_block):
        y = module(x)
        dy = torch.linspace(-1, 2, y.numel()).view_as(y)
        results.append([y, *torch.autograd.grad(y, list(module.parameters()), dy)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@triton.jit
def _store_start(n_pointer, out, channels, pixels):
    tl.store(out, sample_start(tl.load(n_pointer), channels, pixels))


def test_sample_start_beyond_2_to_the_31():
    out = torch.zeros(1, dtype=torch.int64)
    _store_start[(1,)](torch.tensor([3], dtype=torch.int32), out, 2**11, 2**20)
    assert out.item() == 3 * 2**31


def test_kernels_normalize_each_image_without_its_padding(tile_kind):
    extents = Extents(padded=(16, 24), sizes=((16, 8), (8, 24)))
    layer = FusedGroupNorm(4, 12, activation="relu")
    x = torch.randn(2, 12, 8, 12, requires_grad=True)
    dy = torch.randn(x.shape)
    with extents_in_use(extents):
        y = layer(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    for image, (h, w) in enumerate(extents.rectangles(x)):
        alone = x.detach()[image : image + 1, :, :h, :w].clone().requires_grad_()
        expected = torch.nn.functional.group_norm(alone, 4).relu()
        (gradient,) = torch.autograd.grad(expected, alone, dy[image : image + 1, :, :h, :w])
        for found, part in ((y, expected), (dx, gradient)):
            assert torch.allclose(found[image : image + 1, :, :h, :w], part, atol=1e-5)
            assert not found[image, :, h:].any()
            assert not found[image, :, :, w:].any()
