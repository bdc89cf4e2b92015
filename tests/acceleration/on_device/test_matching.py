"""Batched matching and sampling do for each image what detectron2 does."""

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances, pairwise_iou

from gn_det.acceleration.on_device.matching import box_deltas, box_iou, match, pad_targets, sample


def boxes(number: int) -> torch.Tensor:
    corner = torch.rand(number, 2) * 50
    return torch.cat([corner, corner + 1 + torch.rand(number, 2) * 50], dim=1)


@pytest.mark.parametrize("objects", [(3, 1), (0, 4), (0, 0), (2,)])
@pytest.mark.parametrize(("thresholds", "labels", "low"), [([0.3, 0.7], [0, -1, 1], True), ([0.5], [0, 1], False)])
def test_match_is_the_matcher_of_detectron2(objects, thresholds, labels, low):
    images = [Instances((99, 99), gt_boxes=Boxes(boxes(number)), gt_classes=torch.arange(number)) for number in objects]
    candidates, matcher = boxes(40), Matcher(thresholds, labels, low)
    targets = pad_targets(images)
    index, label = match(matcher, box_iou(targets.boxes, candidates[None]), targets.valid)
    for image, found, found_label in zip(images, index, label, strict=True):
        expected, expected_label = matcher(pairwise_iou(image.gt_boxes, Boxes(candidates)))
        assert torch.equal(found, expected) and torch.equal(found_label.to(torch.int8), expected_label)


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [(30, 60, (4, 12)), (2, 60, (2, 14)), (0, 60, (0, 16)), (30, 3, (4, 3)), (0, 0, (0, 0)), (1, 5, (1, 5))],
)
def test_sample_fills_the_slots(positives, negatives, expected):
    kind = torch.full((2, 100), -1)
    kind[:, :positives], kind[:, positives : positives + negatives] = 1, 0
    kind = kind[:, torch.randperm(100)]
    index, label = sample(kind == 1, kind == 0, 16, 0.25, torch.rand(2, 100))
    for image in range(2):
        drawn = index[image][label[image] >= 0]
        assert len(drawn.unique()) == len(drawn) and torch.equal(kind[image, drawn], label[image][label[image] >= 0])
        assert ((label[image] == 1).sum(), (label[image] == 0).sum()) == expected
    assert torch.equal(label, label.sort(dim=1, descending=True).values)


def test_sample_is_uniform_and_limited_by_the_candidates():
    keys = torch.rand(20_000, 8)
    positive = torch.arange(8).expand_as(keys) < 4
    index, label = sample(positive, ~positive, 4, 0.5, keys)
    share = index.flatten().bincount() / len(keys)
    torch.testing.assert_close(share, torch.full((8,), 0.5), atol=0.02, rtol=0)
    index, label = sample(positive, ~positive, 100, 0.5, keys)
    assert index.shape == (20_000, 8) and (label >= 0).all()
    almost_one = torch.tensor(1.0).nextafter(torch.tensor(0.0)).expand(1, 2)
    assert sample(torch.tensor([[True, False]]), torch.tensor([[False, True]]), 2, 0.5, almost_one)[1].tolist() == [
        [1, 0]
    ]


def test_box_deltas_are_those_of_detectron2_and_0_elsewhere():
    transform = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    source, target = boxes(20), boxes(20)
    positive = torch.rand(20) < 0.5
    target[~positive] = 0
    found = box_deltas(transform, source, target, positive)
    assert torch.equal(found[positive], transform.get_deltas(source[positive], target[positive]))
    assert not found[~positive].any()
