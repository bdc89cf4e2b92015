"""Every key map, on synthetic state dicts with the real names and shapes of its project."""

from functools import cache, partial

import pytest
import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.layers.batch_norm import FrozenBatchNorm2d
from detectron2.modeling import build_model, build_resnet_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import nn

from gn_det import GNDetError
from gn_det.checkpoint import FOLDED, convert
from gn_det.config.files import load_config
from helpers.foreign import (
    detectron2_resnet,
    detectron2_state,
    detectron_blobs,
    detectron_imagenet,
    detectron_training,
    group_norm_reproduce,
    mmdet_backbone,
    mmdet_state,
    timm_resnet50_gn,
    torchvision_model,
    torchvision_resnet50,
)

# The arguments of functions of helpers.foreign, and the config of the same network.
DETECTORS = {
    "R50-FPN GN": ({}, "mask_rcnn_R50_FPN_gn"),
    "R101-FPN GN": ({"depth": 101}, "mask_rcnn_R101_FPN_gn"),
    "R50-FPN BN* 2fc": ({"norm": "affine", "head": "2fc"}, "mask_rcnn_R50_FPN_frozenbn"),
    "R50-FPN BN* 4conv1fc": ({"norm": "affine"}, "mask_rcnn_R50_FPN_frozenbn_4conv1fc"),
    "R101-FPN BN* 2fc": ({"norm": "affine", "head": "2fc", "depth": 101}, "mask_rcnn_R101_FPN_frozenbn"),
    "R50-C4 BN*": ({"norm": "affine", "fpn": False}, "mask_rcnn_R50_C4_frozenbn"),
    "R50-C4 GN": ({"fpn": False}, "mask_rcnn_R50_C4_gn"),
    "Faster R50-FPN GN": ({"masks": False}, "mask_rcnn_R50_FPN_gn"),
}
detectors = pytest.mark.parametrize("kind", DETECTORS)


@cache
def model_state(kind: str) -> dict[str, torch.Tensor]:
    """Return the state dict of a model on the meta device, for names and shapes."""
    arguments, name = DETECTORS[kind]
    masks = arguments.get("masks", True)
    cfg = load_config(name, ["MODEL.DEVICE", "meta", "MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.MASK_ON", masks])
    with torch.device("meta"):
        return build_model(cfg).state_dict()


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert not [name for name in expected if not torch.equal(found[name], expected[name])]


def shapes(state: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


# ---- Detectron


@detectors
def test_detectron_weights_have_the_names_and_shapes_of_the_model(kind):
    converted = convert(detectron_blobs(**DETECTORS[kind][0]))
    assert shapes(converted.weights) == shapes(model_state(kind))
    assert (converted.origin, converted.backbone_only, converted.leftover, converted.dropped) == (
        "Detectron",
        False,
        [],
        {},
    )


@detectors
def test_every_row_of_detectron_weights_is_in_its_place(kind):
    arguments = DETECTORS[kind][0]
    assert_same(convert(detectron_blobs(**arguments)).weights, detectron2_state(**arguments))


@detectors
def test_the_conversion_of_detectron_weights_agrees_with_detectron2(kind):
    """detectron2's own conversion matches the ends of names.

    It does not reorder the anchors of C4 (see below).
    """
    blobs = detectron_blobs(**DETECTORS[kind][0])
    stock = align_and_update_state_dicts(model_state(kind), dict(blobs), c2_conversion=True)
    converted = convert(blobs)
    anchors = ("objectness_logits", "anchor_deltas") if "C4" in kind else ()
    local = {name: converted.weights[name] for name, source in converted.sources.items() if source != FOLDED}
    assert stock.keys() == local.keys() and len(local) == len(blobs)
    different = [name for name in local if not torch.equal(local[name], stock[name])]
    assert different == [name for name in local if any(layer in name for layer in anchors)]


@pytest.mark.parametrize(("kind", "number"), [("R50-FPN GN", 223), ("R101-FPN GN", 376)])
def test_the_number_of_detectron_blobs(kind, number):
    """The numbers are counted in Detectron's sources."""
    converted = convert(detectron_blobs(**DETECTORS[kind][0]))
    assert len(converted.sources) == len(set(converted.sources.values())) == number


def test_examples_of_detectron_names():
    """Some names of each kind, copied from Detectron's sources and from logs posted by users."""
    gn, c4 = convert(detectron_blobs()).sources, convert(detectron_blobs(fpn=False, norm="affine")).sources
    frozen = convert(detectron_blobs(depth=101, norm="affine", head="2fc")).sources
    for sources, name, blob in [
        (gn, "backbone.bottom_up.stem.conv1.norm.weight", "conv1_gn_s"),
        (gn, "backbone.bottom_up.res4.5.conv2.norm.bias", "res4_5_branch2b_gn_b"),
        (gn, "backbone.bottom_up.res2.0.shortcut.weight", "res2_0_branch1_w"),
        (gn, "backbone.fpn_lateral5.norm.weight", "fpn_inner_res5_2_sum_gn_s"),
        (gn, "backbone.fpn_lateral2.weight", "fpn_inner_res2_2_sum_lateral_w"),
        (gn, "backbone.fpn_output3.norm.bias", "fpn_res3_3_sum_gn_b"),
        (gn, "proposal_generator.rpn_head.conv.weight", "conv_rpn_fpn2_w"),
        (gn, "roi_heads.box_head.conv4.norm.weight", "head_conv4_gn_s"),
        (gn, "roi_heads.box_head.fc1.weight", "fc6_w"),
        (gn, "roi_heads.mask_head.mask_fcn1.norm.weight", "_mask_fcn1_gn_s"),
        (frozen, "backbone.bottom_up.stem.conv1.norm.bias", "res_conv1_bn_b"),
        (frozen, "backbone.bottom_up.res4.22.conv3.weight", "res4_22_branch2c_w"),
        (frozen, "backbone.fpn_lateral4.bias", "fpn_inner_res4_22_sum_lateral_b"),
        (frozen, "roi_heads.box_head.fc2.bias", "fc7_b"),
        (frozen, "roi_heads.mask_head.mask_fcn4.bias", "_[mask]_fcn4_b"),
        (frozen, "roi_heads.mask_head.deconv.weight", "conv5_mask_w"),
        (c4, "roi_heads.res5.0.conv1.weight", "res5_0_branch2a_w"),
        (c4, "backbone.res4.5.conv1.weight", "res4_5_branch2a_w"),
        (c4, "proposal_generator.rpn_head.anchor_deltas.bias", "rpn_bbox_pred_b"),
        (c4, "roi_heads.mask_head.predictor.weight", "mask_fcn_logits_w"),
    ]:
        assert sources[name] == blob


def test_the_anchors_of_c4_keep_their_shapes():
    """Each channel keeps its anchor.

    Detectron (generate_anchors.py) iterates over ratios and, within each, over sizes; detectron2
    does the reverse.
    """
    sizes, ratios = [32, 64, 128, 256, 512], [0.5, 1.0, 2.0]
    detectron = torch.tensor([(size * ratio**-0.5, size * ratio**0.5) for ratio in ratios for size in sizes])
    blobs = detectron_blobs(fpn=False)
    blobs["rpn_cls_logits_w"] = detectron[:, :1, None, None].expand(15, 1024, 1, 1)  # the width of its anchor
    blobs["rpn_bbox_pred_b"] = detectron[:, 1].repeat_interleave(4) + torch.arange(60) % 4 / 8  # the height
    weights = convert(blobs).weights
    boxes = DefaultAnchorGenerator(sizes=[sizes], aspect_ratios=[ratios], strides=[16]).generate_cell_anchors(
        tuple(sizes), tuple(ratios)
    )
    assert torch.allclose(
        weights["proposal_generator.rpn_head.objectness_logits.weight"][:, 0, 0, 0], boxes[:, 2] - boxes[:, 0]
    )
    deltas = weights["proposal_generator.rpn_head.anchor_deltas.bias"].view(15, 4)
    assert torch.allclose(deltas, (boxes[:, 3] - boxes[:, 1])[:, None] + torch.arange(4) / 8)


def test_frozen_bn_with_the_added_statistics_computes_the_affine_layer():
    converted = convert(detectron_imagenet(norm="affine"))
    layer = FrozenBatchNorm2d(256)
    prefix = "res2.0.conv3.norm."
    layer.load_state_dict({k.removeprefix(prefix): v for k, v in converted.weights.items() if k.startswith(prefix)})
    x = torch.randn(1, 256, 3, 3, requires_grad=True)
    assert torch.equal(layer(x), x * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1))
    folded = [name for name, source in converted.sources.items() if source == FOLDED]
    assert len(folded) == 2 * 53 and all("running_" in name for name in folded)


@pytest.mark.parametrize("norm", ["gn", "affine"])
def test_the_training_state_of_detectron_is_dropped(norm):
    blobs = detectron_blobs(norm=norm)
    training = detectron_training(blobs, norm)
    assert len(training) > 2 * len(blobs)
    converted = convert(training)
    assert converted.dropped.keys() == training.keys() - blobs.keys() and not converted.leftover
    assert_same(converted.weights, detectron2_state(norm=norm))


@pytest.mark.parametrize("norm", ["gn", "affine", "bn"])
@pytest.mark.parametrize("depth", [50, 101])
def test_imagenet_files_of_detectron(norm, depth):
    blobs = detectron_imagenet(depth, norm)
    converted = convert(blobs)
    assert_same(converted.weights, detectron2_resnet(depth, norm))
    assert converted.backbone_only and len(converted.dropped) == 2 and not converted.leftover
    with torch.device("meta"):
        cfg = load_config("mask_rcnn_R50_FPN_gn", ["MODEL.RESNETS.DEPTH", depth, "MODEL.DEVICE", "meta"])
        model = build_model(cfg).state_dict()
    stock = align_and_update_state_dicts(model, dict(blobs), c2_conversion=True)
    found = {name.removeprefix("backbone.bottom_up."): value for name, value in stock.items() if "bottom_up" in name}
    assert len(found) == 3 * (53 if depth == 50 else 104)
    assert_same(found, {name: converted.weights[name] for name in found})


def test_a_class_agnostic_mask_is_not_removed_as_background():
    blobs = detectron_blobs() | {"mask_fcn_logits_w": torch.ones(1, 256, 1, 1), "mask_fcn_logits_b": torch.ones(1)}
    assert convert(blobs).weights["roi_heads.mask_head.predictor.weight"].shape == (1, 256, 1, 1)


# ---- mmdetection

MMDET = {
    "R50-FPN GN": ({}, "R50-FPN GN"),
    "R101-FPN GN": ({"depth": 101}, "R101-FPN GN"),
    "Faster R50-FPN GN": ({"masks": False}, "Faster R50-FPN GN"),
    "R50-FPN BN 2fc": ({"norm": "bn", "head": "2fc"}, "R50-FPN BN* 2fc"),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", MMDET)
def test_every_row_of_mmdetection_weights_is_in_its_place(kind, version):
    arguments, model = MMDET[kind]
    state = mmdet_state(version, **arguments)
    converted = convert(state)
    assert_same(converted.weights, detectron2_state(**arguments))
    assert shapes(converted.weights) == shapes(model_state(model))
    assert (converted.origin, converted.backbone_only) == (f"mmdetection {version}.x", False)
    assert not converted.leftover and all("num_batches_tracked" in name for name in converted.dropped)
    assert len(converted.sources) + len(converted.dropped) == len(state)


def test_the_background_is_first_in_mmdetection_1_and_last_in_2():
    one, two = mmdet_state(1), mmdet_state(2)
    assert (len(one["bbox_head.fc_cls.bias"]), len(two["roi_head.bbox_head.fc_cls.bias"])) == (81, 81)
    assert (len(one["bbox_head.fc_reg.bias"]), len(two["roi_head.bbox_head.fc_reg.bias"])) == (324, 320)
    assert (len(one["mask_head.conv_logits.bias"]), len(two["roi_head.mask_head.conv_logits.bias"])) == (81, 80)
    one["bbox_head.fc_cls.bias"] = two["roi_head.bbox_head.fc_cls.bias"] = torch.arange(81.0)
    place = "roi_heads.box_predictor.cls_score.bias"
    assert convert(one).weights[place].tolist() == [*range(1, 81), 0]  # the background, 0 in 1.x, is now last
    assert convert(two).weights[place].tolist() == list(range(81))


def test_class_agnostic_boxes_of_mmdetection_1_are_unchanged():
    state = mmdet_state(1) | {"bbox_head.fc_reg.weight": torch.ones(4, 1024), "bbox_head.fc_reg.bias": torch.ones(4)}
    assert convert(state).weights["roi_heads.box_predictor.bbox_pred.bias"].shape == (4,)


def test_examples_of_mmdetection_names():
    """Some names of each kind, copied from mmdetection's sources and its issues 7960, 10924 and 894."""
    one, two = convert(mmdet_state(1)).sources, convert(mmdet_state(2)).sources
    bn = convert(mmdet_state(2, norm="bn", head="2fc")).sources
    for sources, name, file in [
        (one, "backbone.bottom_up.stem.conv1.norm.weight", "backbone.gn1.weight"),
        (one, "backbone.bottom_up.res2.0.shortcut.weight", "backbone.layer1.0.downsample.0.weight"),
        (one, "backbone.bottom_up.res5.0.shortcut.norm.bias", "backbone.layer4.0.downsample.1.bias"),
        (one, "backbone.bottom_up.res2.1.conv3.norm.bias", "backbone.layer1.1.gn3.bias"),
        (one, "backbone.fpn_lateral2.weight", "neck.lateral_convs.0.conv.weight"),
        (one, "backbone.fpn_output5.norm.weight", "neck.fpn_convs.3.gn.weight"),
        (one, "proposal_generator.rpn_head.anchor_deltas.weight", "rpn_head.rpn_reg.weight"),
        (one, "roi_heads.box_head.conv1.norm.weight", "bbox_head.shared_convs.0.gn.weight"),
        (one, "roi_heads.box_head.fc1.weight", "bbox_head.shared_fcs.0.weight"),
        (two, "roi_heads.box_head.conv4.weight", "roi_head.bbox_head.shared_convs.3.conv.weight"),
        (two, "roi_heads.mask_head.mask_fcn4.norm.bias", "roi_head.mask_head.convs.3.gn.bias"),
        (two, "roi_heads.mask_head.deconv.weight", "roi_head.mask_head.upsample.weight"),
        (two, "roi_heads.mask_head.predictor.bias", "roi_head.mask_head.conv_logits.bias"),
        (bn, "backbone.bottom_up.res2.0.conv1.norm.running_mean", "backbone.layer1.0.bn1.running_mean"),
        (bn, "backbone.bottom_up.res5.0.shortcut.norm.running_var", "backbone.layer4.0.downsample.1.running_var"),
        (bn, "backbone.fpn_lateral3.bias", "neck.lateral_convs.1.conv.bias"),
        (bn, "roi_heads.box_head.fc2.weight", "roi_head.bbox_head.shared_fcs.1.weight"),
        (bn, "roi_heads.box_predictor.bbox_pred.weight", "roi_head.bbox_head.fc_reg.weight"),
    ]:
        assert sources[name] == file


@pytest.mark.parametrize("depth", [50, 101])
def test_imagenet_files_of_mmdetection(depth):
    converted = convert(mmdet_backbone(depth))
    assert_same(converted.weights, detectron2_resnet(depth))
    assert (converted.origin, converted.backbone_only, converted.leftover) == ("mmdetection", True, [])


# ---- torchvision, timm, GroupNorm-reproduce


@pytest.mark.parametrize(
    ("state", "norm"), [(torchvision_resnet50, "bn"), (timm_resnet50_gn, "gn"), (group_norm_reproduce, "gn")]
)
def test_every_torchvision_name_is_used(state, norm):
    state = state()
    converted = convert(state)
    assert shapes(converted.weights) == shapes(detectron2_resnet(norm=norm))
    assert (converted.origin, converted.backbone_only, converted.leftover) == ("torchvision", True, [])
    dropped = [name for name in state if "num_batches_tracked" in name or "fc." in name]
    assert list(converted.dropped) == dropped
    assert sorted(converted.sources.values()) == sorted(state.keys() - set(dropped))


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_a_torchvision_resnet_computes_the_same_in_detectron2(norm):
    original = torchvision_model(norm).eval()
    for layer in original.modules():
        if isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm)):  # every norm is different
            for tensor in (
                layer.weight,
                layer.bias,
                getattr(layer, "running_mean", None),
                getattr(layer, "running_var", None),
            ):
                if tensor is not None:
                    tensor.data.uniform_(0.5, 1.5)
    cfg = get_cfg()
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.STRIDE_IN_1X1, cfg.MODEL.BACKBONE.FREEZE_AT = norm.upper(), False, 0
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    converted = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    missing, unexpected = converted.load_state_dict(convert(original.state_dict()).weights, strict=False)
    assert not unexpected and all("num_batches_tracked" in name for name in missing)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = nn.Sequential(*list(original.children())[:-2])(x)
        assert torch.allclose(converted(x)["res5"], expected, rtol=1e-4, atol=1e-4) and expected.std() > 0.01


# ---- names without a rule, impossible shapes


@pytest.mark.parametrize(
    ("state", "names"),
    [
        (detectron_blobs, ["retnet_cls_conv_n0_fpn3_w", "x"]),
        (detectron_blobs, ["_[mask]_fcn1_w"]),  # another blob has the same place
        (partial(mmdet_state, 1), ["backbone.layer1.0.conv2_offset.weight"]),
        (partial(mmdet_state, 2), ["roi_head.bbox_head.0.fc_cls.weight"]),
        (timm_resnet50_gn, ["conv1.0.weight"]),
        (group_norm_reproduce, ["module.attnpool.weight"]),
    ],
)
def test_names_without_a_rule_are_left_over(state, names):
    assert convert(state() | dict.fromkeys(names, torch.ones(1))).leftover == names


@pytest.mark.parametrize(
    ("name", "shape"),
    [("cls_score_w", ()), ("bbox_pred_w", ()), ("rpn_cls_logits_w", (14, 4, 1, 1)), ("rpn_bbox_pred_b", ())],
)
def test_an_impossible_shape_is_refused(name, shape):
    with pytest.raises(GNDetError, match=rf"{name} has the shape \{list(shape)}, which .* cannot have"):
        convert(detectron_blobs(fpn=False) | {name: torch.zeros(shape)})
