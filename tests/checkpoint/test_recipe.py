"""The recipe of weights against a config: what differs is said, with the key to set."""

import pytest

from gn_det.checkpoint.recipe import OF_ORIGIN, contradiction, recipe_of
from gn_det.config.files import load_config

GN, BN, TORCHVISION = "mask_rcnn_R50_FPN_gn", "mask_rcnn_R50_FPN_frozenbn", "mask_rcnn_R50_FPN_bn_4conv1fc"


def config(name: str, *opts):
    return load_config(name, [str(opt) for opt in opts])


@pytest.mark.parametrize("name", [GN, BN, TORCHVISION, "mask_rcnn_R50_C4_ln", "quickstart_R18_FPN_gn_scratch"])
def test_a_config_agrees_with_itself(name):
    assert contradiction(recipe_of(config(name)), config(name)) is None


def test_recipe_of_the_papers_model():
    assert recipe_of(config(GN)) == {
        "format": "BGR",
        "pixel_mean": [102.9801, 115.9465, 122.7717],
        "pixel_std": [1.0, 1.0, 1.0],
        "stride_in_1x1": False,
        "groups": 32,
        "eps": 1e-5,
        "weight_standardisation": False,
    }
    bn = recipe_of(config(BN))
    assert (bn["groups"], bn["eps"], bn["stride_in_1x1"]) == (None, None, True)
    assert (
        recipe_of(config(GN, "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64))["stride_in_1x1"] is None
    )


@pytest.mark.parametrize(
    ("opts", "said"),
    [
        (("INPUT.FORMAT", "RGB"), "images in BGR, and the config has RGB: set INPUT.FORMAT"),
        (("MODEL.PIXEL_MEAN", "[123.675,116.28,103.53]"), "the pixel mean [102.98, 115.947, 122.772]"),
        (("MODEL.PIXEL_STD", "[57.375,57.12,58.395]"), r"the pixel std [1, 1, 1], and the config has [57.375"),
        (("MODEL.RESNETS.STRIDE_IN_1X1", True), "set MODEL.RESNETS.STRIDE_IN_1X1"),
        (("MODEL.GN.NUM_GROUPS", 16), "groups: 32, and the config has 16"),
        (("MODEL.GN.NUM_GROUPS", -1, "MODEL.GN.CHANNELS_PER_GROUP", 16), "one for 16 channels"),
        (("MODEL.RESNETS.NORM", "LN"), "groups: 32, and the config has 1:"),
        (("MODEL.RESNETS.NORM", "IN"), "the config has one a channel"),
        (("MODEL.GN.EPS", 1e-3), "eps 1e-05, and the config has 0.001"),
    ],
)
def test_each_contradiction_is_said(opts, said):
    assert said in contradiction(recipe_of(config(GN)), config(GN, *opts))


def test_what_is_not_known_or_does_not_apply_contradicts_nothing():
    assert contradiction({}, config(GN)) is None
    assert contradiction({"groups": None, "eps": None, "stride_in_1x1": None}, config(GN)) is None
    assert contradiction({"groups": 32, "eps": 1e-5}, config(BN)) is None


def test_detectron2s_mean_serves_detectrons_weights():
    """As detectron2's own GN configs use them; they differ by less than a grey level."""
    detectron2 = config(GN, "MODEL.PIXEL_MEAN", "[103.53,116.28,123.675]")
    assert contradiction(recipe_of(config(GN)), detectron2) is None
    scratch = config(GN, "MODEL.PIXEL_STD", "[57.375,57.12,58.395]")
    torchvision = config(GN, "MODEL.PIXEL_STD", "[58.395,57.12,57.375]")
    assert contradiction(recipe_of(scratch), torchvision) is None


def test_recipes_of_origins_are_those_of_the_configs_that_use_them():
    assert contradiction(OF_ORIGIN["Detectron"], config(GN)) is None
    assert contradiction(OF_ORIGIN["Detectron"], config(BN)) is None
    assert contradiction(OF_ORIGIN["torchvision"], config(TORCHVISION)) is None
    assert "images in RGB" in contradiction(OF_ORIGIN["torchvision"], config(GN))
