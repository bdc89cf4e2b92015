"""The pooler for GPUs, on a CPU with a stand-in for its kernels."""

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import nn

from gn_det.acceleration import roi_align_gpu
from gn_det.acceleration.roi_align_gpu import LevelROIPooler, use_level_poolers
from gn_det.errors import KernelError

SCALES = (1 / 4, 1 / 8)


def make() -> tuple[ROIPooler, list[torch.Tensor], list[Boxes]]:
    torch.manual_seed(0)
    pooler = ROIPooler((3, 3), SCALES, 2, "ROIAlignV2", canonical_box_size=16, canonical_level=2)
    features = [torch.randn(2, 8, 16, 16), torch.randn(2, 8, 8, 8)]
    return pooler, features, [Boxes(torch.tensor([[1.0, 2, 9, 11], [0, 0, 60, 60]])), Boxes(torch.zeros(0, 4))]


def test_poolers_of_a_model_are_changed_once():
    pooler, _, _ = make()
    model = nn.ModuleList([pooler, ROIPooler((3, 3), SCALES, 2, "ROIPool")])
    assert use_level_poolers(model) == 1
    assert type(model[0]) is LevelROIPooler
    assert type(model[1]) is ROIPooler
    assert use_level_poolers(model) == 0


def test_levels_and_arguments_are_those_of_the_pooler(monkeypatch):
    pytest.importorskip("triton")
    pooler, features, boxes = make()
    calls = []
    monkeypatch.setattr("gn_det.ops.roi_align.roi_align_levels", lambda *args: calls.append(args))
    pooler.__class__ = LevelROIPooler
    pooler._pool_levels(features, boxes)
    (_, rois, levels, size, scales, samples, aligned), *_ = calls
    assert rois[:, 0].tolist() == [0, 0]
    assert levels.tolist() == [0, 1]
    assert (size, tuple(scales), samples, aligned) == ((3, 3), SCALES, 2, True)


def test_on_a_cpu_and_after_a_failure_the_pooler_is_detectron2s(monkeypatch):
    pooler, features, boxes = make()
    expected = pooler(features, boxes)
    use_level_poolers(pooler)
    assert torch.equal(pooler(features, boxes), expected)

    def fail(self, x, box_lists):
        raise KernelError("no")

    monkeypatch.setattr(LevelROIPooler, "_pool_levels", fail)
    monkeypatch.setattr(roi_align_gpu, "_on_gpu", lambda x: True)
    assert torch.equal(pooler(features, boxes), expected)
