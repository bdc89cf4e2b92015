"""Read the next images in a thread while the model runs, into memory from which copies to a GPU are fast."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from .on_device.transfer import to_device

Item = TypeVar("Item")
_END: Any = object()


def prefetch(items: Iterable[Item], depth: int = 1) -> Iterator[Item]:
    """Yield the items, while a thread takes the next ones.

    Args:
        items: errors that they raise are raised at the position of the item.
        depth: number of items to take ahead.
    """
    source = iter(items)
    pool = ThreadPoolExecutor(max_workers=1)
    try:
        ahead = deque(pool.submit(next, source, _END) for _ in range(depth))
        while (item := ahead.popleft().result()) is not _END:
            ahead.append(pool.submit(next, source, _END))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def pin(sample: dict, device: torch.device) -> dict:
    """Return a model's input for an image with the pixels in pinned memory, for copies to a GPU."""
    with torch.cuda.device(device):  # pinning in a thread would otherwise initialize the first GPU
        return sample | {"image": sample["image"].pin_memory()}


def sample_to_device(sample: dict, device: torch.device) -> dict:
    """Return a model's input for an image with the pixels on the GPU; the host does not wait for the copy."""
    return sample | {"image": to_device(sample["image"], device)}


class Prefetcher:
    """The batches of a loader, one of them read ahead, with images on the GPU.

    Args:
        loader: has a length, and yields lists of a model's inputs.
    """

    def __init__(self, loader: Any, device: torch.device):
        self._loader, self._device = loader, device

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict]]:
        pinned = ([pin(sample, self._device) for sample in batch] for batch in self._loader)
        for batch in prefetch(pinned):
            yield [sample_to_device(sample, self._device) for sample in batch]
