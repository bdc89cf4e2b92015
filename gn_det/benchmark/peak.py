"""Measure the peak memory of one model while other models are loaded in the same process."""

from collections.abc import Callable

import torch
from torch import nn

from ..cost.memory import LiveStorages
from ..cost.parts import RCNNParts

PEAK_MEANING = {
    "cuda": "maximum that PyTorch had allocated (max_memory_allocated), minus the other models",
    "cpu": "maximum bytes of tensors alive at once, counted by gn_det.cost.memory; without memory that libraries "
    "allocate internally",
}


def peak_bytes(model: nn.Module, run: Callable[[], object], optimizer: torch.optim.Optimizer | None = None) -> int:
    """Return the peak memory of ``run()`` in bytes, including weights and optimizer state.

    The gradients of the model are deleted first.
    """
    model.zero_grad(set_to_none=True)
    held = _bytes([*model.parameters(), *model.buffers()]) + _bytes(_state_tensors(optimizer))
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return held + torch.cuda.max_memory_allocated() - before
    with LiveStorages(RCNNParts(model, 1, 1)) as live:
        run()
    return held + live.peak


def _state_tensors(optimizer: torch.optim.Optimizer | None) -> list[torch.Tensor]:
    states = optimizer.state.values() if optimizer else ()
    return [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
