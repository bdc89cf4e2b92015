"""Weights beside a model: what is compared, what is refused, in which words, and what is let pass."""

import functools

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from gn_det.checkpoint.fit import compare, find_problem, is_weight, not_finite, part_of, report
from gn_det.config.files import load_config
from gn_det.modeling.norm import NORM_KEYS
from helpers.configs import SMALL


@functools.cache
def model(norm: str = "GN", *opts):
    """A small R18-FPN Mask R-CNN with 3 classes. Read only."""
    cfg = load_config("quickstart_R18_FPN_gn_scratch")
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(SMALL)))
    cfg.merge_from_list([*(x for key in NORM_KEYS for x in (key, norm)), *opts])
    torch.manual_seed(0)
    return build_model(cfg)


def weights_of(norm: str = "GN", *opts) -> dict:
    return dict(model(norm, *opts).state_dict())


def trained_bn() -> dict:
    """With statistics of a training."""
    return {n: v + 0.1 if "running_" in n else v for n, v in weights_of("BN").items()}


def backbone(weights: dict) -> dict:
    return {name: value for name, value in weights.items() if name.startswith("backbone.bottom_up.")}


def problem(weights: dict, norm: str = "GN", *opts, accept=(), complete: bool = False):
    there = model(norm, *opts)
    return find_problem(compare(weights, there.state_dict()), weights, there, accept, complete)


@pytest.mark.parametrize("norm", ["GN", "BN", "FrozenBN", ""])
def test_a_models_own_weights_belong_to_it(norm):
    weights = trained_bn() if norm == "BN" else weights_of(norm)
    assert compare(weights, model(norm).state_dict()).whole
    assert problem(weights, norm, complete=True) is None


def test_weights_that_were_trained_with_another_norm_that_counts_in_batches_belong():
    assert problem(trained_bn(), "FrozenBN", complete=True) is None


WRONG_NORM = {
    "GN into BN*": (
        lambda: weights_of("GN"),
        "FrozenBN",
        "a norm without statistics (GN) where the model has FrozenBatch",
    ),
    "GN into BN": (lambda: weights_of("GN"), "BN", "a norm without statistics (GN) where the model has BatchNorm2d"),
    "BN into GN": (trained_bn, "GN", "it has BN where the model has GroupNorm"),
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
    "none into GN": (lambda: weights_of(""), "GN", "it has no norm where the model has GroupNorm"),
    "GN into none": (lambda: weights_of("GN"), "", "it has a norm where the model has none"),
}


@pytest.mark.parametrize("part", [dict, backbone])
@pytest.mark.parametrize("case", WRONG_NORM)
def test_another_norm_is_said(case, part):
    """Without the check, detectron2 fills what has the same name and shape, and warns."""
    make, norm, said = WRONG_NORM[case]
    found = problem(part(make()), norm)
    assert found.word == "norm"
    assert said in found.text and "(layers: backbone 20" in found.text and "MODEL.RESNETS.NORM" in found.text
    assert problem(part(make()), norm, accept=["norm"]) is None


def test_the_part_with_the_other_norm_is_named():
    found = problem(weights_of("GN", "MODEL.ROI_BOX_HEAD.NORM", ""), "GN")
    assert found.word == "norm" and "(layers: box head 4)" in found.text and "MODEL.ROI_BOX_HEAD.NORM" in found.text


def test_another_depth_is_said():
    found = problem(weights_of(), "GN", "MODEL.RESNETS.DEPTH", 34)
    assert found.word == "partial"
    assert "it is of a ResNet-18, and the model has a ResNet-34: set MODEL.RESNETS.DEPTH" in found.text
    deeper = problem(backbone(weights_of("GN", "MODEL.RESNETS.DEPTH", 34)))
    assert "it is of a ResNet-34, and the model has a ResNet-18" in deeper.text


def test_another_number_of_classes_is_said_and_accepted_for_training_only():
    other = weights_of("GN", "MODEL.ROI_HEADS.NUM_CLASSES", 80)
    found = problem(other)
    assert found.word == "classes" and "for 80 classes, and MODEL.ROI_HEADS.NUM_CLASSES is 3" in found.text
    assert problem(other, accept=["classes"]) is None
    assert problem(other, accept=["classes"], complete=True).word == "classes"
    assert problem({**other, "x": torch.zeros(1)}, accept=["classes"]).word == "partial"  # nothing else passes with it


def test_a_backbone_alone_is_a_start_and_no_model():
    assert problem(backbone(weights_of())) is None
    assert "a backbone alone" in problem(backbone(weights_of()), complete=True).text
    gap = backbone(weights_of())
    del gap["backbone.bottom_up.res4.0.conv1.weight"]
    assert "1 of the model's" in problem(gap).text and "res4.0.conv1.weight, for one" in problem(gap).text
    assert problem(gap, accept=["partial"]) is None


@pytest.mark.parametrize("change", ["missing", "unexpected", "reshaped"])
def test_a_detectors_weights_are_all_there_or_refused(change):
    weights, name = weights_of(), "roi_heads.box_head.fc1.weight"
    if change == "unexpected":
        weights["roi_heads.box_head.fc2.weight"] = torch.zeros(1)
    elif change == "missing":
        del weights[name]
    else:
        weights[name] = torch.zeros(1, 1)
    said = {"missing": "are not in it", "unexpected": "are not in the model", "reshaped": "have another shape in it"}
    for complete in (False, True):
        found = problem(weights, complete=complete)
        assert found.word == "partial" and said[change] in found.text and "box_head.fc" in found.text
    assert problem(weights, accept=["partial"]) is None
    assert problem(weights, accept=["partial"], complete=True).word == "partial"


def test_masks_are_left_where_the_model_has_none():
    assert problem(weights_of(), "GN", "MODEL.MASK_ON", False, complete=True) is None
    assert problem(weights_of("GN", "MODEL.MASK_ON", False), "GN").word == "partial"


@pytest.mark.parametrize(
    "weights", [{}, {"head.weight": torch.zeros(3)}, {"backbone.fpn_lateral2.weight": torch.zeros(3)}]
)
@pytest.mark.parametrize("accept", [(), ("norm", "partial", "classes")])
def test_nothing_that_fits_is_never_let_pass(weights, accept):
    found = problem(weights, accept=accept)
    assert found.word == "" and ("no tensors" in found.text or "none of its 1 tensors" in found.text)


def test_what_is_not_learned_does_not_count():
    old = {"pixel_mean": torch.zeros(3, 1, 1), "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(3, 4)}
    assert problem(weights_of() | old, complete=True) is None
    without = {n: v for n, v in trained_bn().items() if "num_batches_tracked" not in n}
    assert len(without) < len(trained_bn()) and problem(without, "BN", complete=True) is None
    assert is_weight("backbone.bottom_up.stem.conv1.norm.running_mean") and not is_weight("a.num_batches_tracked")


def test_values_that_are_not_finite_are_found():
    values = {
        "a": torch.tensor([1.0, float("nan")]),
        "b": torch.tensor([float("-inf")]),
        "c": torch.ones(2),
        "d": torch.tensor(3),
    }
    assert not_finite(values) == ["a", "b"]


def test_report_counts_by_part():
    other = weights_of("GN", "MODEL.ROI_HEADS.NUM_CLASSES", 80) | {"x.y": torch.zeros(1)}
    del other["backbone.fpn_lateral2.weight"]
    fit = compare(other, model().state_dict())
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in report(fit).splitlines()[2:]]
    counts = {row[0]: row[1:] for row in rows}
    assert counts["FPN"][1] == "1" and counts["x"] == ["", "", "1", ""]
    assert counts["box predictor"] == ["2", "", "", "2"]  # its boxes are one for all classes
    total = sum(part_of(name) == "backbone" for name in model().state_dict())
    assert counts["backbone"] == [str(total), "", "", ""]
