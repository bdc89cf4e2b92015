"""Measure, without a GPU, how much memory training and inference of a model need.

The model can be on PyTorch's meta device, where tensors have sizes but no values. Memory is the number
of bytes of all storages that are alive at the same time; a storage that several tensors share counts
once. This is what PyTorch's caching allocator would report as allocated, except for cuDNN's workspaces.
"""

from collections import Counter
from collections.abc import Iterable

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .parts import RCNNParts


class LiveStorages(TorchDispatchMode):
    """Track the storages that are allocated in a ``with`` block and which part of the model allocated each.

    Parameters and buffers of the model are not counted. Storages are held by weak references, which
    stop the id of a storage from being reused without keeping its memory alive.

    Attributes:
        peak: the largest number of bytes that were alive at the same time.
    """

    def __init__(self, parts: RCNNParts):
        super().__init__()
        self.peak = 0
        self._model_storages = {_storage(tensor) for tensor in (*parts.parameters(), *parts.buffers())}
        self._live: dict[StorageWeakRef, tuple[int, str]] = {}
        self._running_parts = ["images"]  # a stack, because parts are nested; "images" is outside of all parts
        self._hooks: list = []
        for part, name in parts.module_names().items():
            module = parts.get_submodule(name)
            self._hooks.append(module.register_forward_pre_hook(lambda *_, part=part: self._running_parts.append(part)))
            self._hooks.append(module.register_forward_hook(lambda *_: self._running_parts.pop() and None))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (storage := _storage(tensor)) not in self._model_storages:
                self._live.setdefault(storage, (tensor.untyped_storage().nbytes(), self._running_parts[-1]))
        self.peak = max(self.peak, sum(self.bytes_by_part().values()))
        return out

    def bytes_by_part(self, exclude: Iterable[torch.Tensor] = ()) -> Counter[str]:
        """Return the bytes that are alive now, by the part that allocated them.

        Args:
            exclude: tensors whose storages are not counted.
        """
        self._live = {storage: row for storage, row in self._live.items() if not storage.expired()}
        excluded = {_storage(tensor) for tensor in exclude}
        total: Counter[str] = Counter()
        for storage, (size, part) in self._live.items():
            total[part] += 0 if storage in excluded else size
        return total

    def __exit__(self, *error):
        for hook in self._hooks:
            hook.remove()
        return super().__exit__(*error)


def _storage(tensor: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def training_memory(parts: RCNNParts, shape: tuple[int, int, int, int], momentum: bool = True) -> dict:
    """Run a forward and backward pass and measure the memory of one training step.

    The gradients of the parameters are deleted.

    Args:
        parts: the model, on the meta device or on another one.
        shape: (N, 3, H, W), the shape of the images.
        momentum: whether the optimizer stores one value for each trained parameter.

    Returns:
        A dict with these keys. All values are in bytes.

        - ``"weights"``: parameters and buffers
        - ``"gradients"``: gradients of the trained parameters
        - ``"optimizer"``: state of the optimizer
        - ``"kept"``: {part: what its forward pass keeps for the backward pass}
        - ``"peak"``: the most that is in use at any time, including all of the above
    """
    parts.train().zero_grad()
    weights = _bytes(parts.parameters()) + _bytes(parts.buffers())
    trained = _bytes(p for p in parts.parameters() if p.requires_grad)
    optimizer = trained if momentum else 0
    with LiveStorages(parts) as live:
        outputs = parts(torch.zeros(shape, device=next(parts.parameters()).device))
        kept = live.bytes_by_part(exclude=outputs)
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    parts.zero_grad()
    peak = weights + optimizer + live.peak
    return {"weights": weights, "gradients": trained, "optimizer": optimizer, "kept": kept, "peak": peak}


def inference_memory(parts: RCNNParts, shape: tuple[int, int, int, int]) -> int:
    """Run the model without gradients and return its peak memory in bytes, including the weights.

    Args:
        parts: the model, on the meta device or on another one.
        shape: (N, 3, H, W), the shape of the images.
    """
    parts.eval()
    with torch.no_grad(), LiveStorages(parts) as live:
        parts(torch.zeros(shape, device=next(parts.parameters()).device))
    return _bytes(parts.parameters()) + _bytes(parts.buffers()) + live.peak


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
