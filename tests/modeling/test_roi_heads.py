"""Box, mask and C4 heads: their layers, and the equality of whole models with detectron2's."""

import copy
import logging

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ConvTranspose2d, ShapeSpec
from detectron2.layers.batch_norm import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from gn_det.config.defaults import add_gn_det_config, get_cfg
from gn_det.errors import GNDetError
from gn_det.modeling.norm import is_norm
from gn_det.modeling.roi_heads import FastRCNN4Conv1FCGNHead, MaskRCNNConvUpsampleGNHead, Res5GNROIHeads

BOX_INPUT = ShapeSpec(channels=64, height=7, width=7)
MASK_INPUT = ShapeSpec(channels=64, height=14, width=14)
C4_INPUT = {"res4": ShapeSpec(channels=1024, stride=16)}
FPN_PARTS = {
    "MODEL.BACKBONE.NAME": "build_gn_resnet_fpn_backbone",
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNN4Conv1FCGNHead",
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleGNHead",
}
C4_PARTS = {"MODEL.BACKBONE.NAME": "build_gn_resnet_backbone", "MODEL.ROI_HEADS.NAME": "Res5GNROIHeads"}
KINDS = {"GN": nn.GroupNorm, "LN": nn.GroupNorm, "IN": nn.GroupNorm, "BN": nn.BatchNorm2d, "": type(None)}


def head_cfg(norm: str = "GN", *opts) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.ROI_BOX_HEAD.NORM", norm, "MODEL.ROI_MASK_HEAD.NORM", norm]
        + ["MODEL.ROI_BOX_HEAD.CONV_DIM", 64, "MODEL.ROI_MASK_HEAD.CONV_DIM", 64, "MODEL.ROI_BOX_HEAD.FC_DIM", 32]
        + ["MODEL.ROI_MASK_HEAD.NUM_CONV", 4, "MODEL.ROI_HEADS.NUM_CLASSES", 5, *opts]
    )
    return cfg


def with_gn_det_parts(cfg: CfgNode, kind: str, *opts) -> CfgNode:
    cfg = cfg.clone()
    add_gn_det_config(cfg)
    for key, name in {"FPN": FPN_PARTS, "C4": C4_PARTS}[kind].items():
        cfg.merge_from_list([key, name])
    cfg.merge_from_list(list(opts))
    return cfg


# ---- whole models compared with detectron2's


@pytest.fixture(params=["FPN", "C4"])
def pair(request, stock_cfg) -> tuple[nn.Module, nn.Module]:
    """Return gn_det's and detectron2's model of one config, with equal weights that differ from 0 and 1."""
    opts = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.ROI_HEADS.NUM_CLASSES", 5]
    cfg = stock_cfg(request.param, *opts)
    stock, model = build_model(cfg), build_model(with_gn_det_parts(cfg, request.param))
    with torch.no_grad():
        for name, p in stock.named_parameters():
            # The initial predictors are so small that all classes have almost the same score.
            p.mul_(20 if "predictor" in name else 1)
            if p.dim() == 1:
                p.add_(0.1 * torch.randn_like(p))
    shapes = [[(k, v.shape) for k, v in m.state_dict().items()] for m in (model, stock)]
    assert shapes[0] == shapes[1]
    model.load_state_dict(stock.state_dict())
    return model, stock


def test_detections_match_detectron2(pair, batch):
    images = batch(0, 0, height=128, width=160)
    with torch.no_grad():
        got, want = (model.eval().inference(images, do_postprocess=False) for model in pair)
        whole = [model(copy.deepcopy(images)) for model in pair]
    for a, b in zip(got, want, strict=True):
        assert len(b) == 8
        assert b.scores.max() - b.scores.min() > 1e-3
        assert b.pred_masks.std() > 1e-3
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, rtol=0, atol=1e-5)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(a.pred_masks, b.pred_masks, rtol=0, atol=1e-5)
        assert torch.equal(a.pred_classes, b.pred_classes)
    for a, b in zip(*whole, strict=True):
        assert torch.equal(a["instances"].pred_masks, b["instances"].pred_masks)


def test_losses_and_gradients_match_detectron2(pair, batch):
    images, losses = batch(2, 1, height=128, width=160), []
    for model in pair:
        torch.manual_seed(1)  # anchors and proposals are sampled
        with EventStorage():
            losses.append(model.train()(copy.deepcopy(images)))
        sum(losses[-1].values()).backward()
    names = {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    assert set(losses[0]) == set(losses[1]) == names
    for name in names:
        assert losses[1][name] > 0
        torch.testing.assert_close(losses[0][name], losses[1][name], rtol=1e-5, atol=1e-5)
    for (name, a), b in zip(pair[0].named_parameters(), pair[1].parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if b.grad is not None:
            scale = b.grad.abs().max().item()
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5 * scale, msg=name)


# ---- the places of the norms


@pytest.mark.parametrize("norm", KINDS)
def test_heads_have_norms_as_in_the_paper(norm, stock_cfg):
    cfg = with_gn_det_parts(stock_cfg("FPN"), "FPN", "MODEL.ROI_BOX_HEAD.NORM", norm, "MODEL.ROI_MASK_HEAD.NORM", norm)
    with torch.device("meta"):
        cfg.MODEL.DEVICE = "meta"
        model = build_model(cfg)
    heads = model.roi_heads
    convs = [f"box_head.conv{i}" for i in (1, 2, 3, 4)] + [f"mask_head.mask_fcn{i}" for i in (1, 2, 3, 4)]
    for name in convs:
        conv = heads.get_submodule(name)
        assert isinstance(conv.norm, KINDS[norm]), name
        assert (conv.bias is None) == (norm != ""), name
        assert isinstance(conv.activation, nn.ReLU), name
        if isinstance(conv.norm, nn.GroupNorm):
            assert conv.norm.num_groups == {"GN": 32, "LN": 1, "IN": 256}[norm], name
    assert sum(is_norm(m) for m in heads.modules()) == (8 if norm else 0)
    assert not any(is_norm(m) for m in model.proposal_generator.modules())
    without_norm = [heads.box_head.fc1, heads.mask_head.deconv, heads.mask_head.predictor]
    without_norm += [heads.box_predictor.cls_score, heads.box_predictor.bbox_pred]
    without_norm += [m for m in model.proposal_generator.modules() if isinstance(m, nn.Conv2d)]
    assert len(without_norm) == 8
    for layer in without_norm:
        assert getattr(layer, "norm", None) is None
        assert layer.bias is not None


def test_box_head_has_four_convs_and_one_fc():
    head = FastRCNN4Conv1FCGNHead(head_cfg(), BOX_INPUT)
    kinds = [Conv2d] * 4 + [nn.Flatten, nn.Linear, nn.ReLU]
    assert [type(m) for m in head] == kinds
    x = want = torch.randn(3, 64, 7, 7)
    for conv in list(head)[:4]:
        want = conv.norm(nn.functional.conv2d(want, conv.weight, padding=1)).relu()
    want = nn.functional.linear(want.flatten(1), head.fc1.weight, head.fc1.bias).relu()
    torch.testing.assert_close(head(x), want)
    assert head(x).shape == (3, 32)
    assert head.output_shape.channels == 32


def test_mask_head_has_four_convs_deconv_and_predictor():
    head = MaskRCNNConvUpsampleGNHead(head_cfg(), MASK_INPUT)
    assert [type(m) for m in head] == [Conv2d] * 4 + [ConvTranspose2d, nn.ReLU, Conv2d]
    x = want = torch.randn(3, 64, 14, 14)
    for conv in list(head)[:4]:
        want = conv.norm(nn.functional.conv2d(want, conv.weight, padding=1)).relu()
    want = nn.functional.conv_transpose2d(want, head.deconv.weight, head.deconv.bias, stride=2).relu()
    want = nn.functional.conv2d(want, head.predictor.weight, head.predictor.bias)
    torch.testing.assert_close(head.layers(x), want)
    assert want.shape == (3, 5, 28, 28)


@pytest.mark.parametrize("agnostic", [True, False])
def test_mask_head_follows_its_other_config_keys(agnostic):
    opts = ["MODEL.ROI_MASK_HEAD.NUM_CONV", 2, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", agnostic]
    head = MaskRCNNConvUpsampleGNHead(head_cfg("GN", *opts), MASK_INPUT)
    assert len(head.conv_norm_relus) == 2
    assert head.layers(torch.randn(1, 64, 14, 14)).shape == (1, 1 if agnostic else 5, 28, 28)


@pytest.mark.parametrize("norm", ["GN", "LN", "IN", "BN", "FrozenBN"])
def test_c4_head_has_the_backbones_norm(norm):
    cfg = head_cfg("", "MODEL.RESNETS.NORM", norm, "MODEL.RESNETS.STRIDE_IN_1X1", False)
    with torch.device("meta"):
        head = Res5GNROIHeads(cfg, C4_INPUT)
    convs = {name: m for name, m in head.res5.named_modules() if isinstance(m, nn.Conv2d)}
    assert len(convs) == 3 * 3 + 1
    for name, conv in convs.items():
        assert isinstance(conv.norm, FrozenBatchNorm2d if norm == "FrozenBN" else KINDS[norm]), name
        assert conv.bias is None, name
        if norm in ("GN", "LN", "IN"):
            assert conv.norm.num_groups == {"GN": 32, "LN": 1, "IN": conv.out_channels}[norm], name


@pytest.mark.parametrize("in_1x1", [True, False])
def test_c4_head_has_stride_on_the_3x3_convolution(in_1x1, caplog):
    cfg = head_cfg("", "MODEL.RESNETS.NORM", "GN", "MODEL.RESNETS.STRIDE_IN_1X1", in_1x1)
    with torch.device("meta"), caplog.at_level(logging.WARNING, "gn_det"):
        head = Res5GNROIHeads(cfg, C4_INPUT)
    assert ("STRIDE_IN_1X1" in caplog.text) == in_1x1
    strides = [(block.conv1.stride, block.conv2.stride, block.conv3.stride) for block in head.res5]
    assert strides == [((1, 1), (2, 2), (1, 1)), ((1, 1),) * 3, ((1, 1),) * 3]


@pytest.mark.parametrize("zero", [True, False])
def test_c4_head_zero_init_residual(zero):
    cfg = head_cfg("", "MODEL.RESNETS.NORM", "GN", "MODEL.RESNETS.STRIDE_IN_1X1", False)
    cfg.MODEL.GN.ZERO_INIT_RESIDUAL = zero
    head = Res5GNROIHeads(cfg, C4_INPUT)
    assert all(isinstance(block, BottleneckBlock) for block in head.res5)
    for name, m in head.res5.named_modules():
        if is_norm(m):
            assert bool((m.weight == (0 if zero and name.endswith("conv3.norm") else 1)).all()), name
    x = torch.randn(2, 1024, 14, 14)
    is_shortcut = torch.allclose(head.res5[0](x), head.res5[0].shortcut(x).relu(), atol=1e-5)
    assert is_shortcut == zero


# ---- refusals


@pytest.mark.parametrize(("conv", "fc"), [(2, 1), (1, 0), (4, 3), (8, 1)])
def test_box_head_refuses_other_numbers_of_layers(conv, fc):
    cfg = head_cfg("GN", "MODEL.ROI_BOX_HEAD.NUM_CONV", conv, "MODEL.ROI_BOX_HEAD.NUM_FC", fc)
    message = f"FastRCNN4Conv1FCGNHead.*4 convolutions and 1 fc.*NUM_CONV is {conv} and NUM_FC is {fc}: set them to 4"
    with pytest.raises(GNDetError, match=message):
        FastRCNN4Conv1FCGNHead(cfg, BOX_INPUT)


@pytest.mark.parametrize(("conv", "fc"), [(0, 0), (0, 2), (4, 1)])
def test_box_head_accepts_detectron2s_default_numbers_of_layers(conv, fc):
    cfg = head_cfg("GN", "MODEL.ROI_BOX_HEAD.NUM_CONV", conv, "MODEL.ROI_BOX_HEAD.NUM_FC", fc)
    head = FastRCNN4Conv1FCGNHead(cfg, BOX_INPUT)
    assert (len(head.conv_norm_relus), len(head.fcs)) == (4, 1)


@pytest.mark.parametrize(
    ("build", "layer", "key"),
    [
        (FastRCNN4Conv1FCGNHead, r"box_head\.conv1 \(and 3 more\)", "ROI_BOX_HEAD"),
        (MaskRCNNConvUpsampleGNHead, r"mask_head\.mask_fcn1 \(and 3 more\)", "ROI_MASK_HEAD"),
    ],
)
def test_error_for_indivisible_channels_names_the_layer(build, layer, key):
    cfg = head_cfg("GN", f"MODEL.{key}.CONV_DIM", 72)
    message = rf"roi_heads\.{layer} has 72 channels, .*MODEL\.GN\.NUM_GROUPS 32 .*{key}\.NORM is GN.*to 24 or 36\."
    with pytest.raises(GNDetError, match=message):
        build(cfg, BOX_INPUT)
    for groups in (24, 36):
        cfg.MODEL.GN.NUM_GROUPS = groups
        build(cfg, BOX_INPUT)


def test_error_for_indivisible_channels_of_the_c4_head_names_the_layer():
    opts = ["MODEL.RESNETS.NORM", "GN", "MODEL.RESNETS.WIDTH_PER_GROUP", 62, "MODEL.RESNETS.STRIDE_IN_1X1", False]
    cfg = head_cfg("", *opts)
    message = r"roi_heads\.res5\.0\.conv1 \(and 5 more\) has 496 channels.*RESNETS\.NORM is GN.*NUM_GROUPS to 16\."
    with pytest.raises(GNDetError, match=message), torch.device("meta"):
        Res5GNROIHeads(cfg, C4_INPUT)
    cfg.MODEL.GN.NUM_GROUPS = 16
    with torch.device("meta"):
        Res5GNROIHeads(cfg, C4_INPUT)


# ---- built without a config


@pytest.mark.parametrize("norm", ["GN", "", lambda channels: nn.GroupNorm(8, channels)])
def test_heads_can_be_built_without_a_config(norm):
    box = FastRCNN4Conv1FCGNHead(BOX_INPUT, conv_dims=[32] * 4, fc_dims=[16], conv_norm=norm)
    assert box(torch.randn(2, 64, 7, 7)).shape == (2, 16)
    mask = MaskRCNNConvUpsampleGNHead(MASK_INPUT, num_classes=3, conv_dims=[32] * 3, conv_norm=norm)
    assert mask.layers(torch.randn(2, 64, 14, 14)).shape == (2, 3, 28, 28)
    kinds = {type(head.conv_norm_relus[0].norm) for head in (box, mask)}
    assert kinds == {type(None) if norm == "" else nn.GroupNorm}


def test_c4_head_can_be_built_without_a_config():
    cfg = head_cfg("", "MODEL.RESNETS.NORM", "GN", "MODEL.RESNETS.STRIDE_IN_1X1", False, "MODEL.MASK_ON", True)
    with torch.device("meta"):
        parts = Res5GNROIHeads.from_config(cfg, C4_INPUT)
        head = Res5GNROIHeads(**parts)
    assert head.res5 is parts["res5"]
    assert head.mask_head is parts["mask_head"]


# ---- no regions, no objects, one image


@pytest.mark.parametrize("norm", ["GN", "LN", "IN", ""])
@pytest.mark.parametrize("training", [True, False])
def test_heads_accept_zero_regions(norm, training):
    box = FastRCNN4Conv1FCGNHead(head_cfg(norm), BOX_INPUT).train(training)
    mask = MaskRCNNConvUpsampleGNHead(head_cfg(norm), MASK_INPUT).train(training)
    y = box(torch.randn(0, 64, 7, 7, requires_grad=True))
    assert y.shape == (0, 32)
    z = mask.layers(torch.randn(0, 64, 14, 14, requires_grad=True))
    assert z.shape == (0, 5, 28, 28)
    (y.sum() + z.sum()).backward()
    assert all(not p.grad.any() for head in (box, mask) for p in head.parameters())


@pytest.mark.parametrize("norm", ["GN", "LN", "IN"])
def test_regions_do_not_affect_each_other(norm):
    """With BN in the box head they do, although the regions of one image are not independent samples."""
    box = FastRCNN4Conv1FCGNHead(head_cfg(norm), BOX_INPUT).double()
    x = torch.randn(5, 64, 7, 7).double()
    torch.testing.assert_close(box(x)[:1], box(x[:1]))
    bn = FastRCNN4Conv1FCGNHead(head_cfg("BN"), BOX_INPUT).double()
    assert not torch.allclose(bn(x)[:1], bn(x[:1]), atol=1e-3)


def quickstart_cfg(tiny_cfg, *opts) -> CfgNode:
    return tiny_cfg("quickstart_R18_FPN_gn_scratch", *opts)


def c4_cfg(stock_cfg) -> CfgNode:
    return with_gn_det_parts(stock_cfg("C4", "MODEL.ROI_HEADS.NUM_CLASSES", 5), "C4")


@pytest.fixture(params=["FPN", "C4"])
def small_model(request, tiny_cfg, stock_cfg) -> nn.Module:
    return build_model(quickstart_cfg(tiny_cfg) if request.param == "FPN" else c4_cfg(stock_cfg))


@pytest.mark.parametrize("objects", [(2,), (0,), (0, 0), (2, 0), (0, 3)])
def test_training_with_one_image_or_without_objects(small_model, batch, objects):
    with EventStorage():
        losses = small_model.train()(batch(*objects))
    assert all(loss.isfinite() for loss in losses.values())
    assert (losses["loss_mask"] > 0) == any(objects)
    sum(losses.values()).backward()
    grads = [p.grad for p in small_model.parameters() if p.grad is not None]
    assert grads
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_inference_on_one_image_with_and_without_detections(small_model, batch, threshold):
    small_model.eval().roi_heads.box_predictor.test_score_thresh = threshold
    with torch.no_grad():
        (found,) = small_model(batch(0))
    instances = found["instances"]
    assert (len(instances) > 0) == (threshold == 0.0)
    assert instances.pred_masks.shape == (len(instances), 96, 128)


@pytest.mark.parametrize("training", [True, False])
def test_roi_heads_accept_zero_proposals(small_model, training):
    """In training there is no ground-truth box either that detectron2 would add to the proposals."""
    heads = small_model.train(training).roi_heads
    size = (96, 128)
    proposals = Instances(size, proposal_boxes=Boxes(torch.zeros(0, 4)), objectness_logits=torch.zeros(0))
    features = small_model.backbone(torch.randn(1, 3, *size))
    if not training:
        with torch.no_grad():
            (found,), _ = heads(None, features, [proposals])
        assert len(found) == 0
        return
    heads.proposal_append_gt = False
    target = Instances(size, gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.long))
    with EventStorage():
        _, losses = heads(None, features, [proposals], [target])
    assert all(loss == 0 for loss in losses.values())
    sum(losses.values()).backward()
