"""Let detectron2 and the parts with fixed sizes draw the same random samples."""

import itertools

import pytest
import torch
from detectron2.modeling import sampling
from torch import Tensor

from gn_det.acceleration.on_device import heads, proposals
from gn_det.acceleration.on_device.matching import sample


def same_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the same keys to the positives, and to the negatives, of each image, in the order of the calls.

    detectron2's ``randperm`` returns the order of the keys. Call it before each of the two steps to compare.
    """
    calls = itertools.count()
    monkeypatch.setattr(sampling, "torch", _Torch(calls))
    for module in (proposals, heads):
        monkeypatch.setattr(module, "sample", lambda *args: sample(*args[:4], _keys_by_rank(*args[:2], calls)))


class _Torch:
    """PyTorch with another ``randperm``."""

    def __init__(self, calls):
        self.calls = calls

    def randperm(self, number: int, device=None) -> Tensor:
        return _keys(next(self.calls), number).argsort(descending=True)

    def __getattr__(self, name: str):
        return getattr(torch, name)


def _keys(call: int, number: int) -> Tensor:
    return torch.rand(number, generator=torch.Generator().manual_seed(call))


def _keys_by_rank(positive: Tensor, negative: Tensor, calls) -> Tensor:
    keys = torch.zeros(positive.shape)
    for image in range(len(positive)):
        for mask in (positive[image], negative[image]):
            keys[image, mask] = _keys(next(calls), int(mask.sum()))
    return keys
