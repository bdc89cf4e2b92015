"""Group norm with residual and ReLU as separate PyTorch operations, for tests, tracers and exporters."""

from typing import TypeVar

import torch

_Maybe = TypeVar("_Maybe", torch.Tensor, torch.Tensor | None)


def group_norm(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float = 1e-5,
    residual: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """Compute act(GN(x) * weight + bias + residual); autograd computes the gradients.

    Args:
        x: ``(N, C, *)``.

    Returns:
        ``(N, C, *)`` in the dtype of x. Half-precision inputs are computed in float32.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = torch.group_norm(_convert(x, dtype), groups, _convert(weight, dtype), _convert(bias, dtype), eps)
    if residual is not None:
        y = y + residual
    if activation == "relu":
        y = torch.relu(y)
    return _convert(y, x.dtype)


def _convert(tensor: _Maybe, dtype: torch.dtype) -> _Maybe:
    """Return the tensor in ``dtype``. If it already has that dtype, a trace shows no conversion."""
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)
