"""Weight Standardization: its formula in float64, the layers that have it, and the parts that would ignore it."""

import numpy as np
import pytest
import torch
from detectron2.layers import Conv2d, ConvTranspose2d, FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import nn
from torch.nn import functional as F

from gn_det.config.checks import check_config
from gn_det.config.defaults import get_cfg
from gn_det.config.files import load_config
from gn_det.cost.model import analyze
from gn_det.errors import GNDetError
from gn_det.evaluation.records import config_digest
from gn_det.modeling.norm import GroupNorm
from gn_det.modeling.weight_standardization import WSConv2d, standardize, standardize_convs

WS = ["MODEL.GN.WEIGHT_STANDARDIZATION", True]
QUICK, R50, C4 = "quickstart_R18_FPN_gn_scratch", "mask_rcnn_R50_FPN_gn", "mask_rcnn_R50_C4_gn"


def apply_formula(weight: np.ndarray) -> np.ndarray:
    """Standardize each channel with the deviation that divides by n - 1, plus 1e-5."""
    out = np.empty_like(weight)
    for channel, w in enumerate(weight):
        mean = sum(w.ravel()) / w.size
        deviation = (sum((v - mean) ** 2 for v in w.ravel()) / (w.size - 1)) ** 0.5
        out[channel] = (w - mean) / (deviation + 1e-5)
    return out


@pytest.mark.parametrize("scale", [1.0, 1e-5])  # the second one is as small as the 1e-5 that is added
def test_standardize_matches_formula(scale):
    weight = scale * (torch.randn(6, 4, 3, 2, dtype=torch.float64) + torch.arange(6.0).view(-1, 1, 1, 1))
    want = torch.from_numpy(apply_formula(weight.numpy()))
    torch.testing.assert_close(standardize(weight), want, rtol=1e-12, atol=1e-12)


def test_standardize_matches_finite_differences():
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(standardize, weight)


def test_wsconv2d_keeps_the_other_options():
    """Stride, padding, dilation, groups and bias, then norm, then activation."""
    options = {"stride": 2, "padding": 3, "dilation": 2, "groups": 2}
    conv = Conv2d(4, 8, 3, **options, norm=nn.GroupNorm(2, 8), activation=F.relu).double()
    standardize_convs(nn.Sequential(conv))
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    weight = torch.from_numpy(apply_formula(conv.weight.detach().numpy()))
    want = F.group_norm(F.conv2d(x, weight, conv.bias, **options), 2).relu()
    torch.testing.assert_close(conv(x), want, rtol=1e-12, atol=1e-12)
    assert not want.eq(0).all() and want.eq(0).any()
    assert conv(x[:0]).shape == (0, *want.shape[1:])


def test_convolutions_without_a_norm_are_unchanged():
    convs = nn.Sequential(Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), Conv2d(4, 4, 3, norm=FrozenBatchNorm2d(4)))
    standardize_convs(convs)
    assert [type(conv) for conv in convs] == [Conv2d, nn.Conv2d, WSConv2d]


def build_on_meta(name: str, *opts) -> nn.Module:
    with torch.device("meta"):
        return build_model(load_config(name, ["MODEL.DEVICE", "meta", *opts]))


@pytest.mark.parametrize("name", [R50, C4])
def test_exactly_the_convolutions_with_a_norm_are_standardized(name):
    model, plain = build_on_meta(name, *WS), build_on_meta(name)
    convs = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    standardized = {n for n, m in convs.items() if type(m) is WSConv2d}
    assert standardized == {n for n, m in convs.items() if isinstance(getattr(m, "norm", None), GroupNorm)}
    rest = {n.rsplit(".", 1)[-1] for n in convs.keys() - standardized}
    assert rest == {"conv", "objectness_logits", "anchor_deltas", "predictor"}  # RPN, and the layer of the mask logits
    assert type(model.roi_heads.mask_head.deconv) is ConvTranspose2d
    assert len(standardized) == {R50: 69, C4: 53}[name]
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (model, plain)]
    assert shapes[0] == shapes[1] and list(shapes[0]) == list(shapes[1])
    assert not any(type(m) is WSConv2d for m in plain.modules())


@pytest.mark.parametrize("opts", [[], ["MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256]])
def test_model_matches_a_plain_model_with_standardized_weights(opts, tiny_cfg):
    """For backbone, FPN and heads, also with a ResNeXt-50."""
    resnext = ["MODEL.RESNETS.NUM_GROUPS", 32, "MODEL.RESNETS.WIDTH_PER_GROUP", 4] if opts else []
    model, plain = (build_model(tiny_cfg(QUICK, *opts, *resnext, *ws)).eval() for ws in (WS, []))
    state = model.state_dict()
    for name, module in model.named_modules():
        if type(module) is WSConv2d:
            state[f"{name}.weight"] = standardize(state[f"{name}.weight"])
    plain.load_state_dict(state)
    x, rois = torch.randn(1, 3, 64, 96), torch.randn(3, 64, 7, 7)
    with torch.no_grad():
        features, plain_features = model.backbone(x), plain.backbone(x)
        heads = [(m.roi_heads.box_head(rois), m.roi_heads.mask_head.layers(rois)) for m in (model, plain)]
    for level, want in plain_features.items():
        torch.testing.assert_close(features[level], want)
    torch.testing.assert_close(heads[0], heads[1])


def test_analysis_counts_the_same_convolutions():
    standardized, plain = (analyze(load_config(QUICK, ws), (64, 96), (1,)) for ws in (WS, []))
    for key in ("parameters", "flops", "activations"):
        assert [row[key] for row in standardized["parts"]] == [row[key] for row in plain["parts"]]
    assert [row["norm"] for row in standardized["norms"]] == [row["norm"] for row in plain["norms"]]
    assert standardized["not_counted"].keys() - plain["not_counted"].keys() == {"aten::std_mean"}


STOCK = {
    "MODEL.BACKBONE.NAME": ("build_resnet_fpn_backbone", "build_gn_resnet_fpn_backbone"),
    "MODEL.ROI_BOX_HEAD.NAME": ("FastRCNNConvFCHead", "FastRCNN4Conv1FCGNHead"),
    "MODEL.ROI_MASK_HEAD.NAME": ("MaskRCNNConvUpsampleHead", "MaskRCNNConvUpsampleGNHead"),
}


@pytest.mark.parametrize("key", STOCK)
def test_stock_parts_that_would_ignore_the_key_are_refused(key):
    stock, replacement = STOCK[key]
    sentence = f"{key} '{stock}' ignores it: set {key} to {replacement}."
    with pytest.raises(GNDetError, match=sentence):
        check_config(load_config(R50, [*WS, key, stock]))
    check_config(load_config(R50, [key, stock]))
    check_config(load_config(R50, WS))


def test_stock_c4_head_is_refused():
    with pytest.raises(GNDetError, match="MODEL.ROI_HEADS.NAME 'Res5ROIHeads' ignores it"):
        check_config(load_config(C4, [*WS, "MODEL.ROI_HEADS.NAME", "Res5ROIHeads"]))
    check_config(load_config(C4, WS))


def test_stock_part_without_a_norm_is_accepted():
    stock = ["MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead", "MODEL.ROI_MASK_HEAD.NORM", ""]
    check_config(load_config(R50, [*WS, *stock]))


def test_deformable_convolutions_are_refused():
    deformable = ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]]
    with pytest.raises(GNDetError, match="DEFORM_ON_PER_STAGE are not standardized"):
        check_config(load_config(R50, [*WS, *deformable]))
    check_config(load_config(R50, deformable))


def test_key_changes_the_config_digest_only_if_true():
    """tests/evaluation/test_records.py tests that older digests are unchanged."""
    assert config_digest(load_config(QUICK, WS)) != config_digest(load_config(QUICK))
    assert get_cfg().MODEL.GN.WEIGHT_STANDARDIZATION is False
