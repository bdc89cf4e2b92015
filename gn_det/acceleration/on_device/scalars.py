"""Metrics that stay on the device until they are read together."""

from weakref import WeakKeyDictionary

import torch
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor

PERIOD = 20  # iterations; the period of detectron2's writers
_waiting: WeakKeyDictionary[EventStorage, list[tuple[str, int, Tensor]]] = WeakKeyDictionary()


def put_scalar(name: str, value: Tensor) -> None:
    """Put a metric (a tensor with one value) into the current storage when it is read the next time.

    :func:`read_scalars` reads it. Without a call of it, it is read after :data:`PERIOD` iterations.
    """
    storage = get_event_storage()
    waiting = _waiting.setdefault(storage, [])
    if waiting and storage.iter - waiting[0][1] >= PERIOD:
        read_scalars(storage)
    waiting.append((name, storage.iter, value.detach().float()))


def read_scalars(storage: EventStorage) -> None:
    """Put all waiting metrics into a storage, each with its iteration.

    The host waits for the device once. NaN is left out: it is a ratio of an empty set, for example the
    accuracy of the positives in a batch that has none.
    """
    waiting = _waiting.get(storage, [])
    if not waiting:
        return
    values = torch.stack([value for _, _, value in waiting]).cpu().tolist()
    for (name, iteration, _), value in zip(waiting, values, strict=True):
        if value == value:
            storage.put_scalar(name, value, cur_iter=iteration)
    waiting.clear()
