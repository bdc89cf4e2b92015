"""Comparing the recipe of weights with a config: each difference is reported with the key to set."""

import pytest

from gn_det.checkpoint.recipe import (
    RECIPES_BY_ORIGIN,
    contradiction,
    decoding_contradiction,
    decoding_of,
    recipe_of,
)
from gn_det.config.files import load_config

GN, BN, TORCHVISION = "mask_rcnn_R50_FPN_gn", "mask_rcnn_R50_FPN_frozenbn", "mask_rcnn_R50_FPN_bn_4conv1fc"


def config(name: str, *opts):
    return load_config(name, [str(opt) for opt in opts])


@pytest.mark.parametrize("name", [GN, BN, TORCHVISION, "mask_rcnn_R50_C4_ln", "quickstart_R18_FPN_gn_scratch"])
def test_a_config_agrees_with_itself(name):
    assert contradiction(recipe_of(config(name)), config(name)) is None


def test_the_recipe_of_the_model_of_the_paper():
    assert recipe_of(config(GN)) == {
        "format": "BGR",
        "pixel_mean": [102.9801, 115.9465, 122.7717],
        "pixel_std": [1.0, 1.0, 1.0],
        "stride_in_1x1": False,
        "groups": 32,
        "eps": 1e-5,
        "weight_standardization": False,
    }
    bn = recipe_of(config(BN))
    assert (bn["groups"], bn["eps"], bn["stride_in_1x1"]) == (None, None, True)
    assert (
        recipe_of(config(GN, "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64))["stride_in_1x1"] is None
    )


@pytest.mark.parametrize(
    ("opts", "clause"),
    [
        (("INPUT.FORMAT", "RGB"), "images in BGR, but the config has RGB: set INPUT.FORMAT to BGR"),
        (
            ("MODEL.PIXEL_MEAN", "[123.675,116.28,103.53]"),
            "the pixel mean [102.9801, 115.9465, 122.7717], but the config has [123.675, 116.28, 103.53]: "
            "set MODEL.PIXEL_MEAN to [102.9801, 115.9465, 122.7717]",
        ),
        (("MODEL.PIXEL_STD", "[57.375,57.12,58.395]"), "the pixel std [1.0, 1.0, 1.0], but the config has [57.375"),
        (
            ("MODEL.RESNETS.STRIDE_IN_1X1", True),
            "with STRIDE_IN_1X1 False, but the config has True: set MODEL.RESNETS.STRIDE_IN_1X1 to False",
        ),
        (("MODEL.GN.NUM_GROUPS", 16), "the number of groups 32, but the config has 16"),
        (("MODEL.GN.NUM_GROUPS", -1, "MODEL.GN.CHANNELS_PER_GROUP", 16), "but the config has one per 16 channels"),
        (("MODEL.RESNETS.NORM", "LN"), "the number of groups 32, but the config has 1: change the norm"),
        (("MODEL.RESNETS.NORM", "IN"), "but the config has one per channel"),
        (("MODEL.GN.WEIGHT_STANDARDIZATION", True), "with WEIGHT_STANDARDIZATION False, but the config has True"),
        (("MODEL.GN.EPS", 1e-3), "eps 1e-05, but the config has 0.001: set MODEL.GN.EPS to 1e-05"),
    ],
)
def test_each_difference_is_reported(opts, clause):
    assert clause in contradiction(recipe_of(config(GN)), config(GN, *opts))


DECODING = {
    "anchor sizes": ("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64], [128]]),
    "anchor ratios": ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.3, 1.0, 3.0]]),
    "anchor offset": ("MODEL.ANCHOR_GENERATOR.OFFSET", 0.0),
    "box weights of the RPN": ("MODEL.RPN.BBOX_REG_WEIGHTS", (2.0, 2.0, 1.0, 1.0)),
    "box weights of the heads": ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (5.0, 5.0, 2.5, 2.5)),
    "pooler": ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2"),
    "resolution": ("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 7),
    "sampling": ("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", 0),
    "class-agnostic boxes": ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    "class-agnostic masks": ("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True),
    "FPN": ("MODEL.FPN.FUSE_TYPE", "avg"),
}


@pytest.mark.parametrize("case", DECODING)
def test_each_key_that_decodes_the_outputs_is_compared(case):
    key, value = DECODING[case]
    trained = config(GN)
    clause = decoding_contradiction(trained, config(GN, key, value))
    assert clause.startswith(f"they were trained with {key} ") and "(the config has " in clause


def test_all_keys_that_differ_are_named():
    opts = [str(part) for pair in list(DECODING.values())[:3] for part in pair]
    clause = decoding_contradiction(config(GN), config(GN, *opts))
    assert all(DECODING[name][0] in clause for name in list(DECODING)[:3])


def test_keys_of_parts_that_a_model_does_not_have_are_not_compared():
    boxes = ("MODEL.MASK_ON", False, "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 7)
    assert decoding_contradiction(config(GN), config(GN, *boxes)) is None
    cascade = ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)
    other = ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (1.0, 1.0, 1.0, 1.0))
    assert decoding_contradiction(config(GN, *cascade), config(GN, *cascade, *other)) is None
    weights = ("MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", ((1.0,) * 4, (2.0,) * 4, (3.0,) * 4))
    assert "CASCADE" in decoding_contradiction(config(GN, *cascade), config(GN, *cascade, *weights))
    assert decoding_of(config(GN, "MODEL.META_ARCHITECTURE", "RetinaNet")).keys() >= {
        "MODEL.RETINANET.BBOX_REG_WEIGHTS"
    }


def test_parts_of_detectron2_decode_as_those_of_gn_det():
    stock = ("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead")
    assert decoding_contradiction(config(GN), config(GN, *stock)) is None


@pytest.mark.parametrize("mean", ["x", 1, [1, "2", 3], [float("nan")] * 3, None, [1.0, 2.0]])
def test_malformed_pixel_mean_does_not_agree(mean):
    clause = contradiction({"pixel_mean": mean}, config(GN))
    assert (clause is None) == (mean is None)


def test_the_old_spelling_of_a_key_is_read():
    clause = contradiction({"weight_standardisation": True}, config(GN))
    assert "with WEIGHT_STANDARDIZATION True, but the config has False" in clause


def test_unknown_settings_agree_with_every_config():
    assert contradiction({}, config(GN)) is None
    assert contradiction({"groups": None, "eps": None, "stride_in_1x1": None}, config(GN)) is None
    assert contradiction({"groups": 32, "eps": 1e-5}, config(BN)) is None


def test_the_pixel_means_of_detectron_and_detectron2_agree():
    """They differ by less than one gray level, and detectron2 uses its own for Detectron's weights."""
    detectron2 = config(GN, "MODEL.PIXEL_MEAN", "[103.53,116.28,123.675]")
    assert contradiction(recipe_of(config(GN)), detectron2) is None
    scratch = config(GN, "MODEL.PIXEL_STD", "[57.375,57.12,58.395]")
    torchvision = config(GN, "MODEL.PIXEL_STD", "[58.395,57.12,57.375]")
    assert contradiction(recipe_of(scratch), torchvision) is None


def test_the_recipes_by_origin_agree_with_the_configs_that_use_such_weights():
    assert contradiction(RECIPES_BY_ORIGIN["Detectron"], config(GN)) is None
    assert contradiction(RECIPES_BY_ORIGIN["Detectron"], config(BN)) is None
    assert contradiction(RECIPES_BY_ORIGIN["torchvision"], config(TORCHVISION)) is None
    assert "images in RGB" in contradiction(RECIPES_BY_ORIGIN["torchvision"], config(GN))
