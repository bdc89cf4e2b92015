"""Weight Standardisation against its formula in float64, which layers it reaches, and which models would ignore it."""

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
from gn_det.modeling.weight_standardization import WSConv2d, standardise, standardise_convs

WS = ["MODEL.GN.WEIGHT_STANDARDIZATION", True]
QUICK, R50, C4 = "quickstart_R18_FPN_gn_scratch", "mask_rcnn_R50_FPN_gn", "mask_rcnn_R50_C4_gn"


def by_the_formula(weight: np.ndarray) -> np.ndarray:
    """Channel by channel, the deviation by n - 1, and 1e-5 added to it."""
    out = np.empty_like(weight)
    for channel, w in enumerate(weight):
        mean = sum(w.ravel()) / w.size
        deviation = (sum((v - mean) ** 2 for v in w.ravel()) / (w.size - 1)) ** 0.5
        out[channel] = (w - mean) / (deviation + 1e-5)
    return out


@pytest.mark.parametrize("scale", [1.0, 1e-5])  # the second one as small as what is added
def test_standardised_weights_follow_the_formula(scale):
    weight = scale * (torch.randn(6, 4, 3, 2, dtype=torch.float64) + torch.arange(6.0).view(-1, 1, 1, 1))
    want = torch.from_numpy(by_the_formula(weight.numpy()))
    torch.testing.assert_close(standardise(weight), want, rtol=1e-12, atol=1e-12)


def test_gradients_go_through_mean_and_deviation():
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(standardise, weight)


def test_the_convolution_keeps_all_else():
    """Stride, padding, dilation, groups, bias, then norm, then activation."""
    more = {"stride": 2, "padding": 3, "dilation": 2, "groups": 2}
    conv = Conv2d(4, 8, 3, **more, norm=nn.GroupNorm(2, 8), activation=F.relu).double()
    standardise_convs(nn.Sequential(conv))
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    weight = torch.from_numpy(by_the_formula(conv.weight.detach().numpy()))
    want = F.group_norm(F.conv2d(x, weight, conv.bias, **more), 2).relu()
    torch.testing.assert_close(conv(x), want, rtol=1e-12, atol=1e-12)
    assert not want.eq(0).all() and want.eq(0).any()
    assert conv(x[:0]).shape == (0, *want.shape[1:])


def test_convolutions_without_a_norm_stay_as_they_are():
    convs = nn.Sequential(Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), Conv2d(4, 4, 3, norm=FrozenBatchNorm2d(4)))
    standardise_convs(convs)
    assert [type(conv) for conv in convs] == [Conv2d, nn.Conv2d, WSConv2d]


def built(name: str, *opts) -> nn.Module:
    with torch.device("meta"):
        return build_model(load_config(name, ["MODEL.DEVICE", "meta", *opts]))


@pytest.mark.parametrize("name", [R50, C4])
def test_it_reaches_what_has_a_norm_and_nothing_else(name):
    model, plain = built(name, *WS), built(name)
    convs = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    standardised = {n for n, m in convs.items() if type(m) is WSConv2d}
    assert standardised == {n for n, m in convs.items() if isinstance(getattr(m, "norm", None), GroupNorm)}
    rest = {n.rsplit(".", 1)[-1] for n in convs.keys() - standardised}
    assert rest == {"conv", "objectness_logits", "anchor_deltas", "predictor"}  # RPN, and the masks' logits
    assert type(model.roi_heads.mask_head.deconv) is ConvTranspose2d
    assert len(standardised) == {R50: 69, C4: 53}[name]
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (model, plain)]
    assert shapes[0] == shapes[1] and list(shapes[0]) == list(shapes[1])
    assert not any(type(m) is WSConv2d for m in plain.modules())


@pytest.mark.parametrize("opts", [[], ["MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256]])
def test_a_model_computes_what_a_plain_one_does_with_standardised_weights(opts, tiny_cfg):
    """Backbone, FPN and heads, all the way to the features; a ResNeXt-50 too."""
    resnext = ["MODEL.RESNETS.NUM_GROUPS", 32, "MODEL.RESNETS.WIDTH_PER_GROUP", 4] if opts else []
    model, plain = (build_model(tiny_cfg(QUICK, *opts, *resnext, *ws)).eval() for ws in (WS, []))
    state = model.state_dict()
    for name, module in model.named_modules():
        if type(module) is WSConv2d:
            state[f"{name}.weight"] = standardise(state[f"{name}.weight"])
    plain.load_state_dict(state)
    x, rois = torch.randn(1, 3, 64, 96), torch.randn(3, 64, 7, 7)
    with torch.no_grad():
        ours, theirs = model.backbone(x), plain.backbone(x)
        heads = [(m.roi_heads.box_head(rois), m.roi_heads.mask_head.layers(rois)) for m in (model, plain)]
    for level, want in theirs.items():
        torch.testing.assert_close(ours[level], want)
    torch.testing.assert_close(heads[0], heads[1])


def test_the_analysis_counts_the_same_convolutions():
    ours, plain = (analyze(load_config(QUICK, ws), (64, 96), (1,)) for ws in (WS, []))
    for key in ("parameters", "flops", "activations"):
        assert [row[key] for row in ours["parts"]] == [row[key] for row in plain["parts"]]
    assert [row["norm"] for row in ours["norms"]] == [row["norm"] for row in plain["norms"]]
    assert ours["not_counted"].keys() - plain["not_counted"].keys() == {"aten::std_mean"}  # and that is said


STOCK = {
    "MODEL.BACKBONE.NAME": ("build_resnet_fpn_backbone", "build_gn_resnet_fpn_backbone"),
    "MODEL.ROI_BOX_HEAD.NAME": ("FastRCNNConvFCHead", "FastRCNN4Conv1FCGNHead"),
    "MODEL.ROI_MASK_HEAD.NAME": ("MaskRCNNConvUpsampleHead", "MaskRCNNConvUpsampleGNHead"),
}


@pytest.mark.parametrize("key", STOCK)
def test_parts_that_would_take_no_notice_are_refused(key):
    stock, ours = STOCK[key]
    sentence = f"{key} '{stock}' would take no notice of it: set {key} to {ours}."
    with pytest.raises(GNDetError, match=sentence):
        check_config(load_config(R50, [*WS, key, stock]))
    check_config(load_config(R50, [key, stock]))
    check_config(load_config(R50, WS))


def test_detectron2s_c4_head_is_refused():
    with pytest.raises(GNDetError, match="MODEL.ROI_HEADS.NAME 'Res5ROIHeads' would take no notice"):
        check_config(load_config(C4, [*WS, "MODEL.ROI_HEADS.NAME", "Res5ROIHeads"]))
    check_config(load_config(C4, WS))


def test_a_part_without_a_norm_may_be_detectron2s():
    stock = ["MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead", "MODEL.ROI_MASK_HEAD.NORM", ""]
    check_config(load_config(R50, [*WS, *stock]))


def test_deformable_convolutions_are_refused():
    deformable = ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]]
    with pytest.raises(GNDetError, match="DEFORM_ON_PER_STAGE are not standardised"):
        check_config(load_config(R50, [*WS, *deformable]))
    check_config(load_config(R50, deformable))


def test_the_key_counts_in_the_digest_where_it_is_on():
    """That digests from before it hold is seen in test_records."""
    assert config_digest(load_config(QUICK, WS)) != config_digest(load_config(QUICK))
    assert get_cfg().MODEL.GN.WEIGHT_STANDARDIZATION is False
