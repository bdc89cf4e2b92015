"""Configs of the GN models of detectron2 and mmdetection: they match the original recipes and models."""

from pathlib import Path

import detectron2
import pytest
import torch
from detectron2.config import get_cfg as detectron2_get_cfg
from detectron2.modeling import build_model

from gn_det.config.files import load_config, shipped_configs
from gn_det.modeling.norm import GroupNorm, is_norm
from gn_det.modeling.weight_standardization import WSConv2d
from helpers.configs import flatten

MISC = Path(detectron2.__file__).parent / "model_zoo" / "configs" / "Misc"
MMDET = [name for name in shipped_configs() if name.startswith("mmdet_")]
DETECTRON2 = {
    "detectron2_mask_rcnn_R50_FPN_gn_3x": "mask_rcnn_R_50_FPN_3x_gn",
    "detectron2_mask_rcnn_R50_FPN_gn_scratch_3x": "scratch_mask_rcnn_R_50_FPN_3x_gn",
    "detectron2_mask_rcnn_R50_FPN_gn_scratch_9x": "scratch_mask_rcnn_R_50_FPN_9x_gn",
}


@pytest.mark.skipif(not MISC.is_dir(), reason="detectron2 is installed without its configs")
@pytest.mark.parametrize("name", DETECTRON2)
def test_detectron2_configs_differ_from_the_originals_only_in_the_parts(name):
    stock = detectron2_get_cfg()
    stock.merge_from_file(str(MISC / f"{DETECTRON2[name]}.yaml"))
    cfg = flatten(load_config(name))
    parts = {
        "MODEL.BACKBONE.NAME": "build_gn_resnet_fpn_backbone",
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNN4Conv1FCGNHead",
        "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleGNHead",
    }
    for key, value in flatten(stock).items():
        assert cfg[key] == parts.get(key, value), key


@pytest.mark.parametrize("name", MMDET)
def test_mmdetection_configs_match_the_original_recipe(name):
    """The recipe is that of configs/_base_ of mmdetection 2.x, changed by its GN, GN+WS and scratch configs."""
    cfg = load_config(name)
    model, solver = cfg.MODEL, cfg.SOLVER
    scratch, faster = "scratch" in name, "faster" in name
    for pooled in (model.ROI_BOX_HEAD, model.ROI_MASK_HEAD):
        assert (pooled.POOLER_TYPE, pooled.POOLER_SAMPLING_RATIO) == ("ROIAlignV2", 0)  # aligned, sample_num 0
    assert model.ANCHOR_GENERATOR.OFFSET == 0  # center_offset
    assert (model.RPN.SMOOTH_L1_BETA, model.ROI_BOX_HEAD.SMOOTH_L1_BETA) == (0, 0)  # L1Loss
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN) == ((800,), 1333)
    assert ((32, 0.04) if scratch else (16, 0.02)) == (solver.IMS_PER_BATCH, solver.BASE_LR)
    assert (1e-4, 0 if scratch else 1e-4) == (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM)
    assert (solver.BIAS_LR_FACTOR, solver.WEIGHT_DECAY_BIAS) == (1, None)
    assert (500, 0.1 if scratch else 0.001) == (solver.WARMUP_ITERS, solver.WARMUP_FACTOR)
    epoch = 3665 if scratch else 7330  # 117,266 images
    last = {"3x": (28, 34, 36), "6x": (65, 71, 73), "1x": (8, 11, 12), "24e": (20, 23, 24), "2x": (16, 22, 24)}
    assert [*solver.STEPS, solver.MAX_ITER] == [epoch * n for n in last[name.rpartition("_")[2]]]
    assert (0 if scratch else 2) == model.BACKBONE.FREEZE_AT and faster == (not model.MASK_ON)
    assert ("gn_ws" in name) == model.GN.WEIGHT_STANDARDIZATION
    resnext = (model.RESNETS.NUM_GROUPS, model.RESNETS.WIDTH_PER_GROUP) == (32, 4)
    assert resnext == ("_X" in name) and f"{model.RESNETS.DEPTH}_FPN" in name
    weights = {"contrib": "gn_thangvubk", "gn_ws": f"{model.RESNETS.DEPTH}{'_32x4d' * resnext}_gn_ws-", "scratch": ""}
    start = next((text for word, text in weights.items() if word in name), f"FAIR/R-{model.RESNETS.DEPTH}-GN")
    assert start in model.WEIGHTS and bool(model.WEIGHTS) != scratch
    bgr = not any(word in name for word in weights)
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    pixels = ("BGR", mean[::-1], [1, 1, 1]) if bgr else ("RGB", mean, std)
    assert pixels == (cfg.INPUT.FORMAT, model.PIXEL_MEAN, model.PIXEL_STD)


@pytest.mark.parametrize("name", [*DETECTRON2, *MMDET])
def test_layers_of_the_model_in_full_depth(name):
    """Weight standardization applies to each convolution with a norm: 53 or 104 in the ResNet, 8, 4 and 4 in the rest."""
    cfg = load_config(name, ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    assert {type(m) for m in model.modules() if is_norm(m)} == {GroupNorm}
    convolutions = {50: 53, 101: 104}[cfg.MODEL.RESNETS.DEPTH] + 8 + 4 + 4 * cfg.MODEL.MASK_ON
    assert sum(is_norm(m) for m in model.modules()) == convolutions
    assert sum(type(m) is WSConv2d for m in model.modules()) == convolutions * ("gn_ws" in name)
