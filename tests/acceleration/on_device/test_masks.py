"""Masks are rasterized on the device as detectron2 and COCO's API do on the host, pixel for pixel."""

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from pycocotools import mask as coco_masks

from gn_det.acceleration.on_device import masks
from gn_det.acceleration.on_device.masks import mask_targets, pack_polygons, rasterize, sample_masks

KINDS = ("random", "half pixels", "integers", "tiny")


def polygon(kind: str, points: int) -> np.ndarray:
    x = np.random.default_rng(torch.randint(2**31, ()).item()).uniform(-10, 110, 2 * points)
    return {"random": x, "half pixels": np.round(2 * x) / 2, "integers": np.round(x), "tiny": x / 200 + 40}[kind]


def random_masks(kind: str, objects: int) -> PolygonMasks:
    return PolygonMasks(
        [
            [polygon(kind, int(torch.randint(3, 30, ()))) for _ in range(int(torch.randint(1, 4, ())))]
            for _ in range(objects)
        ]
    )


def random_boxes(number: int) -> torch.Tensor:
    a, b = torch.rand(2, number, 2) * 120 - 10
    boxes = torch.cat([torch.minimum(a, b), torch.maximum(a, b)], dim=1)
    boxes[::5, 2] = boxes[::5, 0]  # no width
    boxes[::3] = boxes[::3].round()
    return boxes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [28, 14])
def test_polygons_are_rasterized_as_by_coco(kind, size, monkeypatch):
    monkeypatch.setattr(masks, "_MOST_CROSSINGS", 10_000)  # several parts
    source, boxes = random_masks(kind, 10), random_boxes(60)
    index = torch.randint(10, (60,))
    found = rasterize(pack_polygons([source], boxes.device), index, boxes, size)
    assert torch.equal(found, source[index].crop_and_resize(boxes, size)) and (found.any() or kind == "tiny")


@pytest.mark.parametrize("slope", [(1, 3), (3, 1), (-2, 5), (7, -2), (1, 1), (0, 1), (1, 0)])
def test_lines_of_every_direction(slope):
    """A thin triangle along a line, at every offset of 1/10 pixel, on a grid that COCO rasterizes directly."""
    for offset in np.arange(0, 2, 0.1):
        a = np.array([10.0, 10.0]) + offset
        points = np.stack([a, a + 2.5 * np.array(slope), a + 2.5 * np.array(slope) + (0.7, 0.3)]).ravel()
        expected = coco_masks.decode(coco_masks.frPyObjects([points.tolist()], 28, 28))[..., 0].astype(bool)
        packed = pack_polygons([PolygonMasks([[points]])], torch.device("cpu"))
        found = rasterize(packed, torch.zeros(1, dtype=torch.long), torch.tensor([[0.0, 0, 28, 28]]), 28)
        assert np.array_equal(found[0].numpy(), expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_steps_to_a_crossing(sign):
    """The first step at which the drawn line has crossed, also where the division rounds up or down."""
    columns = torch.arange(2.0, 60, 5, dtype=torch.float64)
    for height in range(2, 80):
        slopes = sign * torch.arange(1.0, height, dtype=torch.float64)[:, None] / height
        start = torch.tensor(0.0 if sign > 0 else 60.0, dtype=torch.float64)
        drawn = (start + slopes * torch.arange(5000) + 0.5).trunc()
        for column in columns:
            crossed = drawn > column if sign > 0 else drawn <= column
            steps = masks._steps(start, slopes, column)[:, 0]
            assert torch.equal(steps.long(), crossed.int().argmax(dim=1))


def instances(gt_masks, boxes: torch.Tensor) -> Instances:
    return Instances((100, 100), proposal_boxes=Boxes(boxes), gt_masks=gt_masks)


@pytest.mark.parametrize("kind", ["polygons", "bit masks"])
@pytest.mark.parametrize("empty", [0, 1, 2])
def test_targets_of_a_batch(kind, empty):
    """One of the three images has no objects, and so no masks."""
    gt = [random_masks("random", number) for number in (2, 1, 3)]
    if kind == "bit masks":
        gt = [BitMasks.from_polygon_masks(m, 100, 90 + len(m)) for m in gt]
    truth = [Instances((100, 100), gt_masks=m) for m in gt]
    truth[empty] = Instances((100, 100))
    boxes = [random_boxes(12).abs() for _ in gt]
    index = torch.stack([torch.randint(len(m), (12,)) for m in gt])
    index[empty] = 0
    sampled = sample_masks(truth, index)
    found = mask_targets([instances(m[:12], b) for m, b in zip(sampled, boxes, strict=True)], 14).split(12)
    for image, (m, b) in enumerate(zip(gt, boxes, strict=True)):
        if image != empty:
            assert torch.equal(found[image], m[index[image]].crop_and_resize(b, 14))


def test_no_image_has_masks():
    sampled = sample_masks([Instances((9, 9))], torch.zeros(1, 4, dtype=torch.long))
    assert not mask_targets([instances(sampled[0], torch.rand(4, 4))], 14).any()
