"""Reading ahead in a thread."""

import threading

import pytest
import torch

from gn_det.acceleration import prefetch as module
from gn_det.acceleration.prefetch import Prefetcher, prefetch


@pytest.mark.parametrize("depth", [1, 3])
def test_items_come_in_order_and_are_taken_ahead_by_one_thread(depth):
    taken, threads = [], set()

    def items():
        for number in range(10):
            threads.add(threading.get_ident())
            taken.append(number)
            yield number

    assert list(prefetch(items(), depth)) == list(range(10))
    assert len(threads) == 1 and threading.get_ident() not in threads
    taken.clear()
    stream = prefetch(items(), depth)
    assert next(stream) == 0
    stream.close()  # waits for the thread
    assert len(taken) <= depth + 1
    assert list(prefetch([], depth)) == []


def test_errors_are_raised_at_the_position_of_the_item():
    def items():
        yield 1
        raise ValueError("damaged")

    stream = prefetch(items(), depth=2)
    assert next(stream) == 1
    with pytest.raises(ValueError, match="damaged"):
        next(stream)


def test_batches_of_a_loader_are_pinned_in_the_thread_and_copied_in_the_main_thread(monkeypatch):
    pinned, copied = set(), set()
    monkeypatch.setattr(module, "pin", lambda s, d: pinned.add(threading.get_ident()) or s | {"pinned": True})
    monkeypatch.setattr(module, "sample_to_device", lambda s, d: copied.add(threading.get_ident()) or s | {"device": d})
    loader = Prefetcher([[{"image": 1}], [{"image": 2}, {"image": 3}]], torch.device("cuda"))
    batches = list(loader)
    assert len(loader) == 2 and [[s["image"] for s in batch] for batch in batches] == [[1], [2, 3]]
    assert all(s["pinned"] and s["device"].type == "cuda" for batch in batches for s in batch)
    assert copied == {threading.get_ident()} and len(pinned) == 1 and not pinned & copied


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_arrive_on_the_gpu():
    images = [torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in range(5)]
    batches = list(Prefetcher([[{"image": image}] for image in images], torch.device("cuda")))
    for image, (sample,) in zip(images, batches, strict=True):
        assert sample["image"].is_cuda and torch.equal(sample["image"].cpu(), image)
