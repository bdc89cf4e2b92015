"""``nn.GroupNorm`` with what follows it."""

import torch
from torch import nn

from . import function


class FusedGroupNorm(nn.GroupNorm):
    """act(GN(x) + residual): an ``nn.GroupNorm`` for type checks and state dicts, with ``activation`` None or "relu".

    Raises:
        ValueError: as ``nn.GroupNorm``, and for an unknown activation.
    """

    activation: str | None = None

    def __init__(self, *args, activation: str | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if activation not in function.ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; it has to be None or 'relu'.")
        self.activation = activation

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """``(N, C, *)`` -> the same, in x's dtype and memory format; N may be 0. See :func:`gn_det.ops.group_norm`."""
        if torch.jit.is_scripting():
            y = torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
            if residual is not None:
                y = y + residual
            return y if self.activation is None else torch.relu(y)
        else:  # not compiled by TorchScript, so it has to be in an else
            return function.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, residual, self.activation)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"
