"""A model with fixed sizes has the losses, gradients and metrics of detectron2 for the same samples."""

import copy
import pickle

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from gn_det import GNDetError
from gn_det.acceleration.inference import apply_model_options
from gn_det.acceleration.on_device.apply import use_fewer_syncs
from gn_det.acceleration.on_device.scalars import read_scalars
from gn_det.acceleration.training import apply_training_options
from helpers.configs import make_narrow
from helpers.polygons import with_polygons
from helpers.same_samples import same_samples

R18 = "quickstart_R18_FPN_gn_scratch"


def run(model: nn.Module, inputs: list[dict], monkeypatch) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Return losses and gradients, and the metrics."""
    model.zero_grad()
    with EventStorage() as storage, monkeypatch.context() as patch:
        same_samples(patch)
        losses = model(copy.deepcopy(inputs))
        read_scalars(storage)
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return losses | gradients, {name: value for name, (value, _) in storage.latest().items()}


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm().clamp(min=1e-6)).item()


def compare(model: nn.Module, inputs: list[dict], monkeypatch, changed: nn.Module | None = None) -> None:
    changed = use_fewer_syncs(copy.deepcopy(model)) if changed is None else changed
    expected, metrics = run(model, inputs, monkeypatch)
    found, found_metrics = run(changed, inputs, monkeypatch)
    assert expected.keys() == found.keys() and len(expected) > 50
    assert max(difference(found[name], expected[name]) for name in expected) < 1e-4
    assert found_metrics == pytest.approx(metrics, rel=1e-5)


@pytest.fixture
def make(tiny_cfg):
    return lambda *opts, name=R18: build_model(make_narrow(tiny_cfg(name, *opts))).train()


@pytest.mark.parametrize("objects", [(3,), (2, 1), (0, 2), (0,), (0, 0), (5, 0, 1)])
@pytest.mark.parametrize("polygons", [True, False])
def test_losses_gradients_and_metrics_are_those_of_detectron2(make, batch, monkeypatch, objects, polygons):
    inputs = batch(*objects, classes=3)
    compare(make(), with_polygons(inputs) if polygons else inputs, monkeypatch)


@pytest.mark.parametrize(
    ("name", "opts"),
    [
        ("mask_rcnn_R50_C4_gn", []),
        ("mask_rcnn_R50_FPN_frozenbn", ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]),
        (R18, ["MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True, "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False]),
        (R18, ["MODEL.MASK_ON", False, "MODEL.RPN.BOUNDARY_THRESH", 8, "MODEL.RPN.SMOOTH_L1_BETA", 0.1]),
        (R18, ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 200, "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 2.0]),
        (R18, ["MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 2, "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign"]),
    ],
)
def test_other_models(make, batch, monkeypatch, name, opts):
    """Also with more slots than candidates, and with a head that is not specific to classes."""
    compare(make(*opts, name=name), batch(2, 0, 1, classes=3), monkeypatch)


@pytest.mark.parametrize("ignore_padding", [True, False])
def test_images_of_different_sizes(tiny_cfg, make, batch, monkeypatch, ignore_padding):
    cfg = tiny_cfg(R18, "MODEL.GN.IGNORE_PADDING", ignore_padding)
    model = apply_model_options(cfg, make(), for_training=True)
    inputs = batch(2, classes=3) + batch(1, height=64, width=160, classes=3) + batch(0, height=32, width=32)
    compare(model, with_polygons(inputs), monkeypatch)


def test_with_all_training_options(tiny_cfg, make, batch, monkeypatch):
    options = [f"TRAIN.{name}" for name in ("FEWER_SYNCS", "CHANNELS_LAST", "CHECKPOINT_ACTIVATIONS")]
    cfg = tiny_cfg(R18, *[word for option in options for word in (option, True)])
    model = make()
    changed = apply_model_options(cfg, copy.deepcopy(model), for_training=True)
    apply_training_options(cfg, changed)
    assert type(changed.roi_heads).__name__ == "OnDeviceROIHeads"
    compare(model, batch(2, 1, classes=3), monkeypatch, changed)


def test_mixed_precision(tiny_cfg, make, batch, monkeypatch):
    cfg, model = tiny_cfg(R18, "SOLVER.AMP.ENABLED", True), make()
    apply_training_options(cfg, model)
    changed = use_fewer_syncs(copy.deepcopy(model))
    inputs = batch(2, 1, classes=3)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = run(model, inputs, monkeypatch), run(changed, inputs, monkeypatch)
    assert max(difference(found[0][name], value) for name, value in expected[0].items()) < 0.05


def test_inference_and_state_dict_stay(make, batch):
    model, inputs = make(), batch(1, 1, classes=3)
    changed = use_fewer_syncs(copy.deepcopy(model))
    assert use_fewer_syncs(changed) is changed and list(changed.state_dict()) == list(model.state_dict())
    expected, found = model.eval()(inputs), pickle.loads(pickle.dumps(changed)).eval()(inputs)
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)
        assert torch.equal(a["instances"].pred_masks, b["instances"].pred_masks)


@pytest.mark.parametrize(
    ("name", "opts", "what"),
    [
        (R18, ["MODEL.META_ARCHITECTURE", "ProposalNetwork"], "a ProposalNetwork"),
        (
            R18,
            ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True],
            "a Cascade",
        ),
        (R18, ["MODEL.KEYPOINT_ON", True], "MODEL.KEYPOINT_ON"),
        (R18, ["MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True], "TRAIN_ON_PRED_BOXES"),
        (R18, ["MODEL.RPN.BBOX_REG_LOSS_TYPE", "giou"], "BBOX_REG_LOSS_TYPE"),
        (R18, ["MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True], "USE_SIGMOID_CE"),
        (R18, ["VIS_PERIOD", 10], "VIS_PERIOD"),
        (R18, ["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"], "POOLER_TYPE"),
        ("mask_rcnn_R50_FPN_frozenbn_bnhead", [], "batch normalization"),
    ],
)
def test_other_models_are_refused(make, name, opts, what):
    with pytest.raises(GNDetError, match=f"TRAIN.FEWER_SYNCS is True, but it does not support .*{what}.*to False"):
        use_fewer_syncs(make(*opts, name=name))
