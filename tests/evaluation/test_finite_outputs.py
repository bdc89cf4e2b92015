"""An evaluation ends at the first image for which the model computes NaN, which detectron2 would drop without an error."""

import math

import pytest
import torch
from detectron2.modeling import build_model

from gn_det import GNDetError
from gn_det.evaluation.finite_outputs import finite_outputs

SMALL = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
NAMES = ["quickstart_R18_FPN_gn_scratch", "mask_rcnn_R50_C4_gn"]
HEAD = "roi_heads.box_predictor.cls_score.weight"


@pytest.fixture(params=NAMES)
def model(request, tiny_cfg):
    return build_model(tiny_cfg(request.param, *SMALL)).eval()


def images(number: int = 2) -> list[dict]:
    return [{"image": torch.rand(3, 64, 64 + 32 * n) * 255, "file_name": f"{n}.png"} for n in range(number)]


@torch.no_grad()
def test_finite_outputs_are_unchanged_and_the_hooks_are_removed(model):
    inputs = images()
    expected = model(inputs)
    with finite_outputs(model):
        found = model(inputs)
    assert all(
        one["instances"].scores.equal(other["instances"].scores) for one, other in zip(expected, found, strict=True)
    )
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
def test_a_head_that_computes_nan_is_refused_with_the_images(model):
    model.get_parameter(HEAD)[0, 0] = math.nan
    model(images())  # detectron2 says nothing
    with (
        finite_outputs(model),
        pytest.raises(GNDetError, match="predicts a score or box that is not finite .* on 0.png, 1.png,"),
    ):
        model(images())


@torch.no_grad()
def test_a_backbone_that_computes_nan_is_refused_with_the_image(model):
    name = next(name for name, _ in model.named_parameters() if name.endswith("stem.conv1.weight"))
    model.get_parameter(name)[0, 0, 0, 0] = math.nan
    with finite_outputs(model), pytest.raises(GNDetError, match="not finite .* on 0.png"):
        model(images())


def test_other_models_are_not_changed():
    model = torch.nn.Identity()
    with finite_outputs(model):
        assert model([{}]) == [{}]
