"""Each key with a range or a list of names refuses other values in a sentence, and the values of the lists train."""

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

NAME = "mask_rcnn_R50_FPN_gn"


def changed(*opts):
    cfg = load_config(NAME)
    cfg.merge_from_list(list(opts))
    return cfg


def refused(*opts, **kwargs) -> str:
    return error_sentence(check_config, changed(*opts), **kwargs)


# Key -> a value out of its range.
OUT_OF_RANGE = {
    "MODEL.PIXEL_MEAN": [100.0, 100.0],
    "MODEL.PIXEL_STD": [1.0, 0.0, 1.0],
    "MODEL.BACKBONE.FREEZE_AT": 6,
    "INPUT.MIN_SIZE_TRAIN": (),
    "SEED": 2**40,
    "SOLVER.MOMENTUM": 1.0,
    "INPUT.CROP.SIZE": [0.9],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 1.0,
    "MODEL.RPN.CONV_DIMS": [-2],
    "MODEL.RPN.BBOX_REG_WEIGHTS": (1.0, 1.0, 0.0, 1.0),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (1.0,),
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
