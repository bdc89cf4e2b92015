"""The operation as PyTorch's own ones, one after the other: what everything is tested against, and what tracers see."""

import torch


def group_norm(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float = 1e-5,
    residual: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """(N, C, *) -> the same, in x's dtype; computed in float32 where that is a half one. Autograd does the backward."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = torch.group_norm(_as(x, wide), groups, _as(weight, wide), _as(bias, wide), eps)
    if residual is not None:
        y = y + residual
    if activation == "relu":
        y = torch.relu(y)
    return _as(y, x.dtype)


def _as(tensor, dtype: torch.dtype):
    """The tensor in ``dtype``. A trace does not show a conversion where there is none."""
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)
