"""Each key with a range or a list of names refuses other values in a sentence, and the values of the lists train."""

import importlib.util

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data.transforms import AugInput
from detectron2.solver import build_lr_scheduler
from detectron2.solver.build import maybe_add_gradient_clipping

from gn_det.config.checks import check_config
from gn_det.config.files import load_config
from gn_det.config.values import CHOICES, RANGES, SWITCHED
from helpers.errors import error_sentence

NAME, C4 = "mask_rcnn_R50_FPN_gn", "mask_rcnn_R50_C4_gn"


def changed(*opts, name: str = NAME):
    cfg = load_config(name)
    cfg.merge_from_list(list(opts))
    return cfg


def refused(*opts, name: str = NAME, **kwargs) -> str:
    return error_sentence(check_config, changed(*opts, name=name), **kwargs)


# Key -> a value out of its range.
OUT_OF_RANGE = {
    "MODEL.PIXEL_MEAN": [100.0, 100.0],
    "MODEL.PIXEL_STD": [1.0, 0.0, 1.0],
    "MODEL.BACKBONE.FREEZE_AT": 6,
    "INPUT.MIN_SIZE_TRAIN": (),
    "SEED": 2**40,
    "SOLVER.MOMENTUM": 1.0,
    "INPUT.CROP.SIZE": [0.9],
    **dict.fromkeys(("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "MODEL.ROI_HEADS.NMS_THRESH_TEST"), 1.5),
    **dict.fromkeys(("MODEL.RPN.NMS_THRESH", "MODEL.RPN.POSITIVE_FRACTION", "MODEL.ROI_HEADS.POSITIVE_FRACTION"), -0.5),
}
TABLE = {one.key: (switch, one) for switch, ranges in {"": RANGES, **SWITCHED}.items() for one in ranges}


@pytest.mark.parametrize("key", TABLE)
def test_values_out_of_range_are_refused(key):
    switch, one = TABLE[key]
    cfg = load_config(NAME)
    *sections, last = key.split(".")
    node = cfg
    for section in sections:
        node = node[section]
    value = OUT_OF_RANGE.get(key, -1 if isinstance(node[last], int) else -0.5)
    cfg.merge_from_list([switch, True] if switch else [])
    if switch == "INPUT.CROP.ENABLED":
        cfg.INPUT.MASK_FORMAT = "bitmask"
    check_config(cfg)
    node[last] = value
    assert error_sentence(check_config, cfg) == f"{key} is {value!r}; it must be {one.text}."
    if one.training:
        check_config(cfg, eval_only=True)
    node[last] = None  # yacs accepts a key without a value
    if key != "SOLVER.WEIGHT_DECAY_BIAS":
        assert error_sentence(check_config, cfg).startswith(f"{key} is None; it must be")


@pytest.mark.parametrize("key", CHOICES)
def test_unknown_names_are_refused_with_the_known_ones(key):
    name = next(iter(CHOICES[key]))
    assert refused(key, name + "x") == f"{key} is {name + 'x'!r}, which is not supported (did you mean {name!r}?)."


PARTS = {
    "MODEL.BACKBONE.NAME": "build_gn_resnet_fpn_backbon",
    "MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchor",
    "MODEL.RPN.HEAD_NAME": "StandardRPN",
    "MODEL.ROI_HEADS.NAME": "StandardROIHead",
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNN4Conv1FCGN",
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleGN",
}


@pytest.mark.parametrize("key", PARTS)
def test_unknown_parts_are_refused_with_the_known_ones(key):
    norms = [
        "MODEL.RESNETS.NORM",
        "BN",
        "MODEL.FPN.NORM",
        "BN",
        "MODEL.ROI_BOX_HEAD.NORM",
        "",
        "MODEL.ROI_MASK_HEAD.NORM",
        "",
    ]
    known = load_config(NAME)
    for part in key.split("."):
        known = known[part]
    assert f"{key} is {PARTS[key]!r}, which is not supported (did you mean" in refused(*norms, key, PARTS[key])
    if key == "MODEL.ROI_MASK_HEAD.NAME":
        check_config(changed(*norms, key, PARTS[key], "MODEL.MASK_ON", False))


UNSUPPORTED = [
    ("MODEL.META_ARCHITECTURE", "RetinaNet"),
    ("MODEL.META_ARCHITECTURE", "ProposalNetwork"),
    ("MODEL.META_ARCHITECTURE", "PanopticFPN"),
    ("MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"),
    ("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"),
    ("MODEL.ROI_HEADS.NAME", "RROIHeads"),
    ("MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"),
    ("DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"),
]


@pytest.mark.parametrize(("key", "value"), UNSUPPORTED)
def test_kinds_without_a_right_evaluation_are_refused(key, value):
    assert refused(key, value).startswith(f"{key} is {value!r}, which is not supported")


@pytest.mark.parametrize("key", ["MODEL.KEYPOINT_ON", "TEST.AUG.ENABLED"])
@pytest.mark.parametrize("eval_only", [False, True])
def test_switches_that_would_do_nothing_are_refused(key, eval_only):
    assert refused(key, True, eval_only=eval_only).startswith(f"{key} is True, but ")


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
    assert "one or more of res4, which the backbone has" in refused("MODEL.RPN.IN_FEATURES", ["p2"], name=C4)


@pytest.mark.parametrize("sizes", [[[32]], [32, 64], [[n] for n in (16, 32, 64, 128, 256)]])
def test_anchors_are_accepted_once_or_for_each_level(sizes):
    check_config(changed("MODEL.ANCHOR_GENERATOR.SIZES", sizes))


def test_cropping_polygons_needs_shapely(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    assert "pip install shapely" in refused("INPUT.CROP.ENABLED", True)
    check_config(changed("INPUT.CROP.ENABLED", True, "INPUT.MASK_FORMAT", "bitmask"))


# Keys of the augmentation and the solver with their names.
NAMES = [(key, name) for key, names in CHOICES.items() if key.startswith(("INPUT", "SOLVER")) for name in names]


@pytest.mark.parametrize(("key", "name"), NAMES)
def test_names_of_augmentation_and_solver_are_followed(key, name):
    crop = ["INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [30, 30] if name.startswith("absolute") else [0.5, 0.5]]
    sizes = ["INPUT.MIN_SIZE_TRAIN", (40, 60), "INPUT.MASK_FORMAT", "bitmask", "SOLVER.CLIP_GRADIENTS.ENABLED", True]
    cfg = changed(*sizes, *(crop if "CROP" in key else ()), key, name)
    check_config(cfg)
    mapper = DatasetMapper(cfg, True)
    image = AugInput(np.zeros((50, 80, 3), np.uint8))
    mapper.augmentations(image)
    assert 40 <= min(image.image.shape[:2]) <= 60
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.full((3,), 1e6)
    optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD)([weight], lr=1.0)
    scheduler = build_lr_scheduler(cfg, optimizer)
    optimizer.step()
    assert 0 < weight.abs().max() <= scheduler.get_last_lr()[0] * cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE * 1.001
