"""A model with fixed sizes has the losses, gradients and metrics of detectron2 for the same samples."""

import copy

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn

from gn_det import GNDetError
from gn_det.acceleration.inference import apply_model_options
from gn_det.acceleration.on_device.apply import use_fewer_syncs
from gn_det.acceleration.on_device.scalars import read_scalars
from gn_det.acceleration.training import apply_training_options
from helpers.same_samples import same_samples

R18 = "quickstart_R18_FPN_gn_scratch"


def with_polygons(inputs: list[dict]) -> list[dict]:
    """Replace the masks by polygons: for each object a triangle and a rectangle that overlap."""
    for image in inputs:
        boxes = image["instances"].gt_boxes.tensor.double().numpy()
        polygons = [[np.array([a, b, c, b, a, d]), np.array([a, b, c, b, c, d, a, d])] for a, b, c, d in boxes]
        image["instances"].gt_masks = PolygonMasks(polygons)
    return inputs


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


def compare(model: nn.Module, inputs: list[dict], monkeypatch, changed: nn.Module | None = None) -> None:
    changed = use_fewer_syncs(copy.deepcopy(model)) if changed is None else changed
    expected, metrics = run(model, inputs, monkeypatch)
    found, found_metrics = run(changed, inputs, monkeypatch)
    assert expected.keys() == found.keys() and len(expected) > 50
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert found_metrics == pytest.approx(metrics, rel=1e-5)


@pytest.fixture
def make(tiny_cfg):
    return lambda *opts, name=R18: build_model(tiny_cfg(name, *opts)).train()


@pytest.mark.parametrize("objects", [(3,), (2, 1), (0, 2), (0,), (0, 0), (5, 0, 1)])
@pytest.mark.parametrize("polygons", [True, False])
def test_losses_gradients_and_metrics_are_those_of_detectron2(make, batch, monkeypatch, objects, polygons):
    inputs = batch(*objects, classes=3)
    compare(make(), with_polygons(inputs) if polygons else inputs, monkeypatch)
