"""The most memory that one side has in use, as if it were alone."""

from collections.abc import Callable

import torch
from torch import nn

from ..cost.memory import LiveStorages
from ..cost.parts import RCNNParts

MEANING = {
    "cuda": "the most that PyTorch had allocated (max_memory_allocated), less the other models",
    "cpu": "the most bytes of tensors alive at once, counted by gn_det.cost.memory; not what libraries take for themselves",
}


def peak_bytes(model: nn.Module, run: Callable[[], object], optimizer: torch.optim.Optimizer | None = None) -> int:
    """Bytes at the peak of ``run()``, weights and the optimizer's state included. Takes the gradients away first."""
    model.zero_grad(set_to_none=True)
    held = _bytes([*model.parameters(), *model.buffers()]) + _bytes(_state(optimizer))
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


def _state(optimizer: torch.optim.Optimizer | None) -> list[torch.Tensor]:
    states = optimizer.state.values() if optimizer else ()
    return [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
