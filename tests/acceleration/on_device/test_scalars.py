"""Metrics are read together, with their iterations."""

import math

import torch
from detectron2.utils.events import EventStorage

from gn_det.acceleration.on_device.scalars import PERIOD, put_scalar, read_scalars


def test_metrics_are_read_together_with_their_iterations():
    with EventStorage(5) as storage:
        for value in (1.0, 2.0, math.nan):
            put_scalar("loss", torch.tensor(value, requires_grad=True))
            storage.step()
        put_scalar("other", torch.tensor(3))
        assert not storage.latest()
        read_scalars(storage)
        read_scalars(storage)
    assert storage.latest() == {"loss": (2.0, 6), "other": (3.0, 8)}
    assert storage.history("loss").values() == [(1.0, 5), (2.0, 6)]


def test_metrics_that_nobody_reads_are_read_after_a_period():
    with EventStorage() as storage:
        for value in range(PERIOD + 1):
            put_scalar("value", torch.tensor(value))
            storage.step()
    assert storage.latest() == {"value": (PERIOD - 1.0, PERIOD - 1)}
