"""Comparing weights with a model: which differences are problems, and which can be accepted."""

import functools

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from gn_det.checkpoint.fit import compare, find_problem, is_learned, part_of, report
from gn_det.config.files import load_config
from gn_det.modeling.norm import NORM_KEYS
from helpers.configs import SMALL


@functools.cache
def model(norm: str = "GN", *opts):
    """A small R18-FPN Mask R-CNN with 3 classes. Tests must not modify it."""
    cfg = load_config("quickstart_R18_FPN_gn_scratch")
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(SMALL)))
    cfg.merge_from_list([*(x for key in NORM_KEYS for x in (key, norm)), *opts])
    torch.manual_seed(0)
    return build_model(cfg)


def weights_of(norm: str = "GN", *opts) -> dict:
    return dict(model(norm, *opts).state_dict())


def trained_bn() -> dict:
    """Weights with BN whose running statistics differ from the initial ones."""
    return {n: v + 0.1 if "running_" in n else v for n, v in weights_of("BN").items()}


def backbone(weights: dict) -> dict:
    return {name: value for name, value in weights.items() if name.startswith("backbone.bottom_up.")}


def problem(weights: dict, norm: str = "GN", *opts, accept=(), complete: bool = False):
    network = model(norm, *opts)
    return find_problem(compare(weights, network.state_dict()), weights, network, accept, complete)


@pytest.mark.parametrize("norm", ["GN", "BN", "FrozenBN", ""])
def test_the_weights_of_a_model_fit_it(norm):
    weights = trained_bn() if norm == "BN" else weights_of(norm)
    assert compare(weights, model(norm).state_dict()).exact
    assert problem(weights, norm, complete=True) is None


def test_weights_trained_with_bn_fit_a_model_with_frozen_bn():
    assert problem(trained_bn(), "FrozenBN", complete=True) is None


WRONG_NORM = {  # case: (maker of weights, norm of the model, part of the text)
    "GN into BN*": (
        lambda: weights_of("GN"),
        "FrozenBN",
        "a norm without statistics (GN) where the model has FrozenBatch",
    ),
    "GN into BN": (lambda: weights_of("GN"), "BN", "a norm without statistics (GN) where the model has BatchNorm2d"),
    "BN into GN": (trained_bn, "GN", "they have BN where the model has GroupNorm"),
    "BN* into GN": (
        lambda: weights_of("FrozenBN"),
        "GN",
        "BN* folded into scale and shift where the model has GroupNorm",
    ),
    "BN* into BN": (
        lambda: weights_of("FrozenBN"),
        "BN",
        "BN* folded into scale and shift where the model has BatchNorm2d",
    ),
    "none into GN": (lambda: weights_of(""), "GN", "they have no norm where the model has GroupNorm"),
    "GN into none": (lambda: weights_of("GN"), "", "they have a norm where the model has none"),
}


@pytest.mark.parametrize("part", [dict, backbone])
@pytest.mark.parametrize("case", WRONG_NORM)
def test_another_norm_is_a_problem(case, part):
    """Stock detectron2 loads the tensors with the same name and shape, and only warns."""
    make, norm, text = WRONG_NORM[case]
    found = problem(part(make()), norm)
    assert found.word == "norm"
    assert text in found.text and "(layers: backbone 20" in found.text and "set MODEL.RESNETS.NORM" in found.text
    assert problem(part(make()), norm, accept=["norm"]) is None


def test_the_part_with_the_other_norm_is_named():
    found = problem(weights_of("GN", "MODEL.ROI_BOX_HEAD.NORM", ""), "GN")
    assert found.word == "norm" and "(layers: box head 4)" in found.text and "MODEL.ROI_BOX_HEAD.NORM" in found.text


def test_another_depth_is_a_problem():
    found = problem(weights_of(), "GN", "MODEL.RESNETS.DEPTH", 34)
    assert found.word == "partial"
    assert "they are for a ResNet-18, but the model has a ResNet-34: set MODEL.RESNETS.DEPTH" in found.text
    deeper = problem(backbone(weights_of("GN", "MODEL.RESNETS.DEPTH", 34)))
    assert "they are for a ResNet-34, but the model has a ResNet-18" in deeper.text


def test_another_number_of_classes_is_accepted_for_training_only():
    other = weights_of("GN", "MODEL.ROI_HEADS.NUM_CLASSES", 80)
    found = problem(other)
    assert found.word == "classes" and "for 80 classes, but MODEL.ROI_HEADS.NUM_CLASSES is 3" in found.text
    assert problem(other, accept=["classes"]) is None
    assert problem(other, accept=["classes"], complete=True).word == "classes"
    two_problems = {**other, "x": torch.zeros(1)}
    assert problem(two_problems, accept=["classes"]).word == "partial"


def test_a_backbone_alone_fits_for_training_but_not_for_evaluation():
    assert problem(backbone(weights_of())) is None
    assert "only a backbone" in problem(backbone(weights_of()), complete=True).text
    partial = backbone(weights_of())
    del partial["backbone.bottom_up.res4.0.conv1.weight"]
    text = problem(partial).text
    assert "lack 1 of the model's" in text and "(for example backbone.bottom_up.res4.0.conv1.weight)" in text
    assert problem(partial, accept=["partial"]) is None


@pytest.mark.parametrize("change", ["missing", "unexpected", "reshaped"])
def test_incomplete_weights_of_a_detector_are_a_problem(change):
    weights, name = weights_of(), "roi_heads.box_head.fc1.weight"
    if change == "unexpected":
        weights["roi_heads.box_head.fc2.weight"] = torch.zeros(1)
    elif change == "missing":
        del weights[name]
    else:
        weights[name] = torch.zeros(1, 1)
    text = {
        "missing": "they lack 1 of the model's",
        "unexpected": "they have 1 tensors that the model does not have",
        "reshaped": "tensors in another shape",
    }[change]
    for complete in (False, True):
        found = problem(weights, complete=complete)
        assert found.word == "partial" and text in found.text and "box_head.fc" in found.text
    assert problem(weights, accept=["partial"]) is None
    assert problem(weights, accept=["partial"], complete=True).word == "partial"


def test_weights_with_a_mask_head_fit_a_model_without():
    assert problem(weights_of(), "GN", "MODEL.MASK_ON", False, complete=True) is None
    assert problem(weights_of("GN", "MODEL.MASK_ON", False), "GN").word == "partial"


@pytest.mark.parametrize(
    "weights", [{}, {"head.weight": torch.zeros(3)}, {"backbone.fpn_lateral2.weight": torch.zeros(3)}]
)
@pytest.mark.parametrize("accept", [(), ("norm", "partial", "classes")])
def test_weights_without_any_matching_tensor_cannot_be_accepted(weights, accept):
    found = problem(weights, accept=accept)
    assert found.word == "" and ("no tensors" in found.text or "none of their 1 tensors" in found.text)


def test_tensors_that_are_not_learned_are_not_compared():
    old = {"pixel_mean": torch.zeros(3, 1, 1), "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(3, 4)}
    assert problem(weights_of() | old, complete=True) is None
    without = {n: v for n, v in trained_bn().items() if "num_batches_tracked" not in n}
    assert len(without) < len(trained_bn()) and problem(without, "BN", complete=True) is None
    assert is_learned("backbone.bottom_up.stem.conv1.norm.running_mean") and not is_learned("a.num_batches_tracked")


def test_the_report_counts_tensors_by_part():
    other = weights_of("GN", "MODEL.ROI_HEADS.NUM_CLASSES", 80) | {"x.y": torch.zeros(1)}
    del other["backbone.fpn_lateral2.weight"]
    fit = compare(other, model().state_dict())
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in report(fit).splitlines()[2:]]
    counts = {row[0]: row[1:] for row in rows}
    assert counts["FPN"][1] == "1" and counts["x"] == ["", "", "1", ""]
    assert counts["box predictor"] == ["2", "", "", "2"]  # the boxes are class-agnostic
    total = sum(part_of(name) == "backbone" for name in model().state_dict())
    assert counts["backbone"] == [str(total), "", "", ""]
