"""ResNet and ResNet-FPN: the places of norms and strides, and the equality with detectron2's backbones."""

import copy
import logging

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.layers.batch_norm import FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import nn

from gn_det.config.defaults import get_cfg
from gn_det.errors import GNDetError
from gn_det.modeling.backbone import build_gn_resnet_backbone, build_gn_resnet_fpn_backbone

RGB = ShapeSpec(channels=3)
BLOCKS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}
FEATURES = ["res2", "res3", "res4", "res5"]


def make_cfg(depth: int = 50, norm: str = "GN", *opts) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_list(
        ["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.NORM", norm, "MODEL.FPN.NORM", norm]
        + ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64 if depth < 50 else 256, "MODEL.BACKBONE.FREEZE_AT", 0]
        + ["MODEL.RESNETS.STRIDE_IN_1X1", False, "MODEL.DEVICE", "cpu"]
        + ["MODEL.RESNETS.OUT_FEATURES", FEATURES, "MODEL.FPN.IN_FEATURES", FEATURES, *opts]
    )
    return cfg


def build_empty(build, cfg: CfgNode) -> nn.Module:
    """Build on the meta device: structure and shapes, without memory or arithmetic."""
    with torch.device("meta"):
        return build(cfg, RGB)


def residual_blocks(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, BasicBlock | BottleneckBlock)]


def last_conv(block: nn.Module) -> nn.Module:
    return block.conv2 if isinstance(block, BasicBlock) else block.conv3


@pytest.mark.parametrize("depth", BLOCKS)
@pytest.mark.parametrize("norm", ["GN", "LN", "IN", "BN", "FrozenBN"])
def test_norm_follows_every_convolution(depth, norm):
    fpn = build_empty(build_gn_resnet_fpn_backbone, make_cfg(depth, norm))
    resnet = fpn.bottom_up
    assert [len(getattr(resnet, name)) for name in FEATURES] == BLOCKS[depth]
    kind = {"BN": nn.BatchNorm2d, "FrozenBN": FrozenBatchNorm2d}.get(norm, nn.GroupNorm)
    convs = {name: m for name, m in fpn.named_modules() if isinstance(m, nn.Conv2d)}
    shortcuts = sum(name.endswith("shortcut") for name in convs)
    convs_per_block, expected_shortcuts = (2, 3) if depth < 50 else (3, 4)  # res2 of R18 has the stem's 64 channels
    assert shortcuts == expected_shortcuts
    assert len(convs) == 1 + sum(BLOCKS[depth]) * convs_per_block + shortcuts + 2 * 4
    for name, conv in convs.items():
        assert isinstance(conv.norm, kind), name
        assert conv.bias is None, name
        if norm in ("GN", "LN", "IN"):
            groups = {"GN": 32, "LN": 1, "IN": conv.out_channels}[norm]
            assert (conv.norm.num_groups, conv.norm.num_channels) == (groups, conv.out_channels), name


@pytest.mark.parametrize("depth", BLOCKS)
def test_output_shapes(depth):
    x = torch.empty(2, 3, 128, 192, device="meta")
    expansion = 1 if depth < 50 else 4
    resnet = build_empty(build_gn_resnet_backbone, make_cfg(depth))
    got = {name: tuple(y.shape) for name, y in resnet(x).items()}
    assert got == {f"res{i}": (2, 2 ** (4 + i) * expansion, 128 >> i, 192 >> i) for i in (2, 3, 4, 5)}
    fpn = build_empty(build_gn_resnet_fpn_backbone, make_cfg(depth))
    got = {name: tuple(y.shape) for name, y in fpn(x).items()}
    assert got == {f"p{i}": (2, 256, 128 >> i, 192 >> i) for i in (2, 3, 4, 5, 6)}
    assert {name: s.stride for name, s in fpn.output_shape().items()} == {f"p{i}": 2**i for i in (2, 3, 4, 5, 6)}


def test_fpn_convolutions_have_no_relu():
    fpn = build_gn_resnet_fpn_backbone(make_cfg(18), RGB)
    convs = [*fpn.lateral_convs, *fpn.output_convs]
    assert len(convs) == 8
    assert all(conv.activation is None for conv in convs)
    y = fpn(torch.randn(1, 3, 64, 64))
    assert all(bool((y[f"p{i}"] < 0).any()) for i in (2, 3, 4, 5))


def test_resnet_and_fpn_have_separate_norm_keys():
    fpn = build_empty(build_gn_resnet_fpn_backbone, make_cfg(18, "GN", "MODEL.FPN.NORM", ""))
    assert all(conv.norm is None and conv.bias is not None for conv in [*fpn.lateral_convs, *fpn.output_convs])
    assert isinstance(fpn.bottom_up.stem.conv1.norm, nn.GroupNorm)
    fpn = build_empty(build_gn_resnet_fpn_backbone, make_cfg(18, "", "MODEL.FPN.NORM", "GN"))
    assert all(isinstance(conv.norm, nn.GroupNorm) for conv in [*fpn.lateral_convs, *fpn.output_convs])
    assert all(m.norm is None for name, m in fpn.bottom_up.named_modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("depth", BLOCKS)
@pytest.mark.parametrize("in_1x1", [True, False])
@pytest.mark.parametrize("build", [build_gn_resnet_backbone, build_gn_resnet_fpn_backbone])
def test_stride_is_on_the_3x3_convolution(build, depth, in_1x1, caplog):
    """STRIDE_IN_1X1 is True by default in detectron2."""
    cfg = make_cfg(depth, "GN", "MODEL.RESNETS.STRIDE_IN_1X1", in_1x1)
    before = cfg.dump()
    cfg.freeze()
    with caplog.at_level(logging.WARNING, "gn_det"):
        backbone = build_empty(build, cfg)
    assert cfg.dump() == before
    warnings = [record.getMessage() for record in caplog.records if "STRIDE_IN_1X1" in record.getMessage()]
    assert len(warnings) == int(in_1x1 and depth >= 50)
    resnet = getattr(backbone, "bottom_up", backbone)
    for stage in ("res3", "res4", "res5"):
        first, *rest = getattr(resnet, stage)
        on_3x3 = first.conv1 if depth < 50 else first.conv2
        assert (on_3x3.kernel_size, on_3x3.stride) == ((3, 3), (2, 2))
        assert first.shortcut.stride == (2, 2)
        strided = [m for m in (first.conv1, first.conv2, last_conv(first)) if m.stride != (1, 1)]
        assert strided == [on_3x3]
        assert all(m.stride == (1, 1) for block in rest for m in block.modules() if isinstance(m, nn.Conv2d))


def perturb(module: nn.Module) -> None:
    """Change scales from 1 and shifts from 0, so that a missing or misplaced norm is detected."""
    with torch.no_grad():
        for p in module.parameters():
            if p.dim() == 1:
                p.add_(0.3 * torch.randn_like(p))


@pytest.mark.parametrize("kind", ["FPN", "C4"])
def test_backbone_matches_detectron2s_with_32_groups(kind, stock_cfg):
    build = {"FPN": build_gn_resnet_fpn_backbone, "C4": build_gn_resnet_backbone}[kind]
    cfg = get_cfg()
    cfg.merge_from_other_cfg(stock_cfg(kind))
    backbone, stock = build(cfg, RGB), build_backbone(stock_cfg(kind))
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (backbone, stock)]
    assert shapes[0] == shapes[1]
    assert list(shapes[0]) == list(shapes[1])
    perturb(stock)
    backbone.load_state_dict(stock.state_dict())
    x = torch.randn(2, 3, 64, 96)
    got, want = backbone(x), stock(x)
    assert list(got) == list(want)
    for name in want:
        assert want[name].std() > 0.1
        torch.testing.assert_close(got[name], want[name], rtol=0, atol=1e-5)
    for y in (got, want):
        sum((t * t.detach().sin()).sum() for t in y.values()).backward()
    for (name, a), b in zip(backbone.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("norm", ["GN", "LN", "IN", "BN"])
@pytest.mark.parametrize("zero", [True, False])
def test_zero_init_residual(depth, norm, zero):
    resnet = build_gn_resnet_backbone(make_cfg(depth, norm, "MODEL.GN.ZERO_INIT_RESIDUAL", zero), RGB)
    last = {id(last_conv(block).norm) for block in residual_blocks(resnet)}
    assert len(last) == sum(BLOCKS[depth])
    for name, m in resnet.named_modules():
        if isinstance(m, nn.GroupNorm | nn.BatchNorm2d):
            assert bool((m.weight == (0 if zero and id(m) in last else 1)).all()), name
            assert not m.bias.any(), name


@pytest.mark.parametrize("depth", [18, 50])
def test_block_with_zero_init_is_its_shortcut(depth):
    resnet = build_gn_resnet_backbone(make_cfg(depth, "GN", "MODEL.GN.ZERO_INIT_RESIDUAL", True), RGB)
    x = torch.randn(2, 64, 16, 16)
    for block in (*resnet.res2, resnet.res3[0]):
        want = (x if block.shortcut is None else block.shortcut(x)).relu()
        x = block(x)
        torch.testing.assert_close(x, want)


def test_block_without_zero_init_is_not_its_shortcut():
    resnet = build_gn_resnet_backbone(make_cfg(50), RGB)
    x = torch.randn(2, 256, 16, 16).relu()
    assert not torch.allclose(resnet.res2[1](x), x, atol=0.1)


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("norm", ["FrozenBN", ""])
def test_zero_init_residual_does_not_change_frozen_scales(depth, norm):
    """A frozen scale of 0 would disable the block forever."""
    resnet = build_gn_resnet_backbone(make_cfg(depth, norm, "MODEL.GN.ZERO_INIT_RESIDUAL", True), RGB)
    for block in residual_blocks(resnet):
        assert last_conv(block).weight.any()
        assert norm == "" or bool((last_conv(block).norm.weight == 1).all())


def test_freeze_at_freezes_norms_too():
    resnet = build_gn_resnet_backbone(make_cfg(50, "GN", "MODEL.BACKBONE.FREEZE_AT", 2), RGB)
    frozen = {name for name, p in resnet.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in resnet.named_parameters() if name.startswith(("stem.", "res2."))}
    assert "stem.conv1.norm.weight" in frozen


@pytest.mark.parametrize("build", [build_gn_resnet_backbone, build_gn_resnet_fpn_backbone])
def test_error_for_indivisible_channels_names_the_layer(build):
    cfg = make_cfg(50, "GN", "MODEL.RESNETS.STEM_OUT_CHANNELS", 48)
    path = "backbone.stem.conv1" if build is build_gn_resnet_backbone else "backbone.bottom_up.stem.conv1"
    with pytest.raises(GNDetError) as error:
        build_empty(build, cfg)
    assert str(error.value).startswith(f"{path} has 48 channels, which MODEL.GN.NUM_GROUPS 32 does not divide")
    assert "MODEL.RESNETS.NORM is GN" in str(error.value)
    assert str(error.value).endswith("set MODEL.GN.NUM_GROUPS to 16.")
    cfg.MODEL.GN.NUM_GROUPS = 16
    y = build(cfg, RGB)(torch.randn(1, 3, 64, 64))
    assert all(t.isfinite().all() for t in y.values())


@pytest.mark.parametrize(("key", "value"), [("NUM_GROUPS", 32), ("CHANNELS_PER_GROUP", 16)])
def test_error_for_indivisible_fpn_channels_proposes_a_working_value(key, value):
    opts = ["MODEL.FPN.OUT_CHANNELS", 40, "MODEL.GN.NUM_GROUPS", -1, f"MODEL.GN.{key}", value]
    cfg = make_cfg(18, "GN", *opts)
    message = rf"backbone\.fpn_lateral2 \(and 7 more\) has 40 channels.*MODEL\.GN\.{key} {value} .*FPN\.NORM.* to 8\."
    with pytest.raises(GNDetError, match=message):
        build_empty(build_gn_resnet_fpn_backbone, cfg)
    cfg.MODEL.GN[key] = 8
    build_gn_resnet_fpn_backbone(cfg, RGB)(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize("norm", ["GN", "LN", "IN"])
@pytest.mark.parametrize("training", [True, False])
def test_output_does_not_depend_on_the_batch(norm, training):
    fpn = build_gn_resnet_fpn_backbone(make_cfg(18, norm), RGB).double().train(training)
    a, b = torch.randn(1, 3, 64, 64).double(), 5 * torch.randn(1, 3, 64, 64).double()
    alone, together = fpn(a), fpn(torch.cat([a, b]))
    for name in alone:
        torch.testing.assert_close(together[name][:1], alone[name], rtol=0, atol=1e-8)


def test_backbone_can_be_deep_copied():
    """The average of the weights is a deep copy."""
    resnet = build_gn_resnet_backbone(make_cfg(18, "LN"), RGB)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(copy.deepcopy(resnet)(x)["res2"], resnet(x)["res2"])
