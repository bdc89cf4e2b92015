"""Keys that do not fit each other are refused in a sentence."""

import importlib.util

import pytest

from gn_det.config.checks import check_config
from gn_det.config.files import load_config
from helpers.errors import error_sentence

NAME, C4 = "mask_rcnn_R50_FPN_gn", "mask_rcnn_R50_C4_gn"


def changed(*opts, name: str = NAME):
    cfg = load_config(name)
    cfg.merge_from_list(list(opts))
    return cfg


def refused(*opts, name: str = NAME) -> str:
    return error_sentence(check_config, changed(*opts, name=name))


COMBINED = {
    "4 of 5 sizes": (["MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256]]], "SIZES has 4 lists, but"),
    "no sizes": (["MODEL.ANCHOR_GENERATOR.SIZES", []], "SIZES is []; it must have one list"),
    "negative size": (["MODEL.ANCHOR_GENERATOR.SIZES", [[-32]]], "SIZES is [[-32]]; it must have one list"),
    "uneven sizes": (["MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [1], [2], [3, 4]]], "the same number of anchors"),
    "2 ratios lists": (["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0], [2.0]]], "ASPECT_RATIOS has 2 lists, but"),
    "text": (["MODEL.ANCHOR_GENERATOR.SIZES", [["32"]]], "it must have one list of numbers"),
    "no p7": (
        ["MODEL.RPN.IN_FEATURES", ["p3", "p7"]],
        "['p3', 'p7']; it must be one or more of p2, p3, p4, p5, p6, which",
    ),
    "no heads": (["MODEL.ROI_HEADS.IN_FEATURES", []], "ROI_HEADS.IN_FEATURES is []; it must be one or more of p2"),
    "no res6": (["MODEL.FPN.IN_FEATURES", ["res6"]], "FPN.IN_FEATURES is ['res6']; it must be one or more of res2"),
    "gap": (["MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p4"]], "the levels must follow each other"),
    "thresholds": (["MODEL.RPN.IOU_THRESHOLDS", [0.7, 0.3]], "RPN.IOU_THRESHOLDS is [0.7, 0.3]; it must be increasing"),
    "labels": (["MODEL.ROI_HEADS.IOU_LABELS", [0]], "ROI_HEADS.IOU_LABELS is [0]; it must have 2 labels"),
    "range of one": (["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"], "pass the smallest and the largest"),
    "crop above 1": (["INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [0.9, 1.1]], "it must be at most 1"),
    "end": (
        ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", 1.0],
        "BASE_LR_END is 1.0; it must be",
    ),
    "repeat": (["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"], "with which no image is repeated"),
}


@pytest.mark.parametrize("case", COMBINED)
def test_keys_that_do_not_fit_each_other_are_refused(case):
    opts, problem = COMBINED[case]
    assert problem in refused(*opts)


def test_features_of_a_model_without_fpn():
    two = ["MODEL.RESNETS.OUT_FEATURES", ["res3", "res4"], "MODEL.ROI_HEADS.IN_FEATURES", ["res3", "res4"]]
    assert "Res5GNROIHeads reads only one" in refused(*two, name=C4)
    assert "one or more of res4, which the backbone has" in refused("MODEL.RPN.IN_FEATURES", ["p2"], name=C4)


@pytest.mark.parametrize(
    ("name", "value"), [("NUM_GROUPS", 32), ("RES5_DILATION", 2), ("DEFORM_ON_PER_STAGE", [True] * 4)]
)
def test_what_shallow_resnets_do_not_support_is_refused(name, value):
    assert f"MODEL.RESNETS.{name} is " in refused(f"MODEL.RESNETS.{name}", value, name="quickstart_R18_FPN_gn_scratch")


@pytest.mark.parametrize("sizes", [[[32]], [32, 64], [[n] for n in (16, 32, 64, 128, 256)]])
def test_anchors_are_accepted_once_or_for_each_level(sizes):
    check_config(changed("MODEL.ANCHOR_GENERATOR.SIZES", sizes))


def test_cropping_polygons_needs_shapely(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    assert "pip install shapely" in refused("INPUT.CROP.ENABLED", True)
    check_config(changed("INPUT.CROP.ENABLED", True, "INPUT.MASK_FORMAT", "bitmask"))
