"""``nn.GroupNorm`` that also adds a residual and applies a ReLU, as one operation."""

from typing import Any

import torch
from torch import nn

from . import function
from .padding import within_rectangles


class FusedGroupNorm(nn.GroupNorm):
    """Compute act(GN(x) + residual). A subclass of ``nn.GroupNorm`` with the same state dict.

    Args:
        args, kwargs: the arguments of ``nn.GroupNorm``.
        activation: None or "relu".
        implementation: that of :func:`gn_det.ops.group_norm`.

    Raises:
        ValueError: the activation is unknown, or ``nn.GroupNorm`` refuses its arguments.
    """

    activation: str | None = None
    implementation: str | None = None

    def __init__(self, *args: Any, activation: str | None = None, implementation: str | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if activation not in function.ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; it must be None or 'relu'.")
        self.activation, self.implementation = activation, implementation

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Normalize x, add the residual and apply the activation (:func:`gn_det.ops.group_norm`).

        Args:
            x: ``(N, C, *)``; N may be 0.
            residual: a tensor of the shape of x.

        Returns:
            ``(N, C, *)`` in the dtype and memory format of x.
        """
        if torch.jit.is_scripting():
            y = torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
            if residual is not None:
                y = y + residual
            return y if self.activation is None else torch.relu(y)
        else:  # noqa: RET505 - an explicit else, so that TorchScript does not compile it
            return within_rectangles(self._normalize, x, residual)

    @torch.jit.unused
    def _normalize(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        arguments = (self.num_groups, self.weight, self.bias, self.eps, residual, self.activation)
        return function.group_norm(x, *arguments, self.implementation)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``: those of ``nn.GroupNorm``, and the activation."""
        return f"{super().extra_repr()}, activation={self.activation}"
