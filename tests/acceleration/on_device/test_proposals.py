"""Proposals and pooled features are those of detectron2."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, ImageList
from detectron2.utils.events import EventStorage

from gn_det.acceleration.on_device import proposals
from gn_det.acceleration.on_device.apply import use_fewer_syncs
from gn_det.acceleration.on_device.pooling import OnDeviceROIPooler

SIZES = [(96, 128), (80, 100), (90, 33)]


@pytest.fixture
def rpns(tiny_cfg):
    """An RPN of detectron2 and its copy with fixed sizes, and predictions that are far from the anchors."""
    model = build_model(tiny_cfg("quickstart_R18_FPN_gn_scratch", "MODEL.RPN.POST_NMS_TOPK_TRAIN", 100)).train()
    changed = use_fewer_syncs(copy.deepcopy(model))
    features = [torch.randn(3, 64, 96 // s, 128 // s) for s in (4, 8, 16, 32, 64)]
    anchors = model.proposal_generator.anchor_generator(features)
    logits = [torch.randn(3, len(a)) for a in anchors]
    deltas = [torch.randn(3, len(a), 4) for a in anchors]
    return model.proposal_generator, changed.proposal_generator, features, (anchors, logits, deltas, SIZES)


def test_anchors(rpns):
    stock, changed, features, _ = rpns
    for expected, found in zip(stock.anchor_generator(features), changed.anchor_generator(features), strict=True):
        assert torch.equal(expected.tensor, found.tensor)


@pytest.mark.parametrize("most", [1, 500, 25_000])
@pytest.mark.parametrize("min_size", [0, 20, 1000])
def test_proposals(rpns, monkeypatch, most, min_size):
    """NMS of one, two and three images at once; some images have fewer proposals than slots, or none."""
    monkeypatch.setattr(proposals, "_MOST_BOXES", most)
    stock, changed, _, inputs = rpns
    stock.min_box_size = changed.min_box_size = min_size
    for expected, found in zip(stock.predict_proposals(*inputs), changed.predict_proposals(*inputs), strict=True):
        kept = found.objectness_logits > -torch.inf
        assert len(found) == 100 and torch.equal(kept, kept.sort(descending=True).values)
        assert kept.sum() == len(expected) and found.image_size == expected.image_size
        torch.testing.assert_close(found.proposal_boxes.tensor[kept], expected.proposal_boxes.tensor)
        assert torch.equal(found.objectness_logits[kept], expected.objectness_logits)


def test_matching_in_parts_gives_the_same_samples(rpns, batch, monkeypatch):
    _, changed, _, (anchors, *_) = rpns
    truth = [image["instances"] for image in batch(2, 0, 4)]
    results = []
    for most in (1, 10**9):
        monkeypatch.setattr(proposals, "_MOST_PAIRS", most)
        torch.manual_seed(0)
        label, (index, boxes) = changed.label_and_sample_anchors(anchors, truth)
        results.append((label, index, boxes))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_predictions_that_are_not_finite_make_the_loss_nan(rpns, batch, bad):
    """detectron2 raises FloatingPointError; here the check of the losses finds it, without waiting."""
    stock, changed, features, _ = rpns
    truth = [image["instances"] for image in batch(1, 0, 2)]
    images = ImageList(torch.zeros(3, 3, 96, 128), SIZES)
    torch.nn.init.constant_(changed.rpn_head.objectness_logits.bias, bad)
    maps = dict(zip(("p2", "p3", "p4", "p5", "p6"), features, strict=True))
    with EventStorage():
        found, losses = changed(images, maps, truth)
    assert all(loss.isnan() for loss in losses.values())
    assert all(p.proposal_boxes.tensor.isfinite().all() and not p.objectness_logits.exp().any() for p in found)


@pytest.mark.parametrize("samples", [0, 2])
@pytest.mark.parametrize("kind", ["ROIAlign", "ROIAlignV2"])
def test_pooling_on_all_levels(samples, kind):
    pooler = ROIPooler(7, (1 / 4, 1 / 8, 1 / 16, 1 / 32), samples, kind)
    maps = [torch.randn(2, 3, 256 // s, 256 // s, requires_grad=True) for s in (4, 8, 16, 32)]
    corner = torch.rand(2, 20, 2) * 100
    boxes = torch.cat([corner, corner + torch.rand(2, 20, 2) ** 3 * 300], dim=2)
    lists = [Boxes(boxes[0]), Boxes(boxes[1, :7])]
    results = []
    for cls in (ROIPooler, OnDeviceROIPooler):
        pooler.__class__ = cls
        out = pooler(maps, lists)
        results.append([out, *torch.autograd.grad(out.sum(), maps)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)) and results[0][0].abs().sum() > 0
