"""Memory of a step, measured without a GPU: on PyTorch's meta device tensors have sizes and no values.

Counted are the bytes of all storages that are alive at once, each once however many tensors share it: what PyTorch's
caching allocator would call allocated, but for the workspaces of cuDNN.
"""

from collections import Counter
from collections.abc import Iterable

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .parts import RCNNParts


class LiveStorages(TorchDispatchMode):
    """While it is entered: the storages that were made and are alive, and the part of the model that made each.

    Parameters and buffers are left out. A weak reference keeps a storage's identity from being given to another one, and
    not its bytes.

    Attributes:
        peak: the most bytes that were alive at once.
    """

    def __init__(self, parts: RCNNParts):
        super().__init__()
        self.peak = 0
        self._own = {_storage(tensor) for tensor in (*parts.parameters(), *parts.buffers())}
        self._live: dict[StorageWeakRef, tuple[int, str]] = {}
        self._running = ["images"]
        self._hooks: list = []
        for part, name in parts.parts().items():
            module = parts.get_submodule(name)
            self._hooks.append(module.register_forward_pre_hook(lambda *_, part=part: self._running.append(part)))
            self._hooks.append(module.register_forward_hook(lambda *_: self._running.pop() and None))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (storage := _storage(tensor)) not in self._own:
                self._live.setdefault(storage, (tensor.untyped_storage().nbytes(), self._running[-1]))
        self.peak = max(self.peak, sum(self.by_part().values()))
        return out

    def by_part(self, without: Iterable[torch.Tensor] = ()) -> Counter[str]:
        """Bytes that are alive, by the part that made them, but for the storages of some tensors."""
        self._live = {storage: row for storage, row in self._live.items() if not storage.expired()}
        left_out = {_storage(tensor) for tensor in without}
        total: Counter[str] = Counter()
        for storage, (size, part) in self._live.items():
            total[part] += 0 if storage in left_out else size
        return total

    def __exit__(self, *error):
        for hook in self._hooks:
            hook.remove()
        return super().__exit__(*error)


def _storage(tensor: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def training_step(parts: RCNNParts, shape: tuple[int, int, int, int], momentum: bool = True) -> dict:
    """The memory of one training step, in bytes. Gives the parameters gradients, for which it deletes those they had.

    Args:
        parts: on the meta device, or with values on another.
        shape: (N, 3, H, W) of the images.
        momentum: whether the optimizer keeps a value for each trained parameter.

    Returns:
        {"weights", "gradients", "optimizer", "kept": {part: what the forward pass keeps for backward},
        "peak": the most at any time, all of the above included}.
    """
    parts.train().zero_grad()
    weights = _bytes(parts.parameters()) + _bytes(parts.buffers())
    trained = _bytes(p for p in parts.parameters() if p.requires_grad)
    optimizer = trained if momentum else 0
    with LiveStorages(parts) as live:
        outputs = parts(torch.zeros(shape, device=next(parts.parameters()).device))
        kept = live.by_part(without=outputs)
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    parts.zero_grad()
    peak = weights + optimizer + live.peak
    return {"weights": weights, "gradients": trained, "optimizer": optimizer, "kept": kept, "peak": peak}


def inference(parts: RCNNParts, shape: tuple[int, int, int, int]) -> int:
    """The most bytes alive at any time while ``parts`` goes over images of (N, 3, H, W), weights included."""
    parts.eval()
    with torch.no_grad(), LiveStorages(parts) as live:
        parts(torch.zeros(shape, device=next(parts.parameters()).device))
    return _bytes(parts.parameters()) + _bytes(parts.buffers()) + live.peak


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
