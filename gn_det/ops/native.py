"""The operation by PyTorch's own kernels: on the CPU, and wherever Triton does not run.

Its functions and those of ``fused.py`` are called alike, and what the forward of one keeps the backward of the other takes.
"""

from collections.abc import Sequence

import torch

# The ReLU's mask is read from the output, which the next layer keeps anyway: to compute it again costs as much as the norm.
SAVES_OUTPUT = True
_HALF = (torch.bfloat16, torch.float16)


def forward(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    groups: int,
    eps: float,
    relu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x (N, C, *) -> y in x's dtype and memory format, and mean and 1 / sqrt(var + eps), (N, G) in float32."""
    weight, bias = _affine(x, weight, bias)
    y, mean, rstd = torch.native_group_norm(_input(x), weight, bias, *_sizes(x), groups, eps)
    y = y.to(x.dtype)
    if residual is not None:
        y.add_(residual)
    return (y.relu_() if relu else y), mean, rstd


def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    groups: int,
    relu: bool,
    needs: Sequence[bool],
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of x, residual, weight and bias, each None where ``needs`` says so.

    Args:
        dy: in x's memory format.
        y: the output; None where the ReLU's mask has to be computed from x, or there is none.
    """
    dy = dy.to(x.dtype)
    if relu:
        y = _normalised(x, mean, rstd, weight, bias) if y is None else y
        dy = torch.ops.aten.threshold_backward(dy, y, 0)
    wide, _ = _affine(x, weight, bias)
    mask = [needs[0], needs[2], needs[3]]
    dx, dweight, dbias = torch.ops.aten.native_group_norm_backward(
        _input(dy), _input(x), mean, rstd, wide, *_sizes(x), groups, mask
    )
    return dx.to(x.dtype) if needs[0] else None, dy if needs[1] else None, dweight, dbias


def _input(x: torch.Tensor) -> torch.Tensor:
    """x, in float32 but on the CPU: only its kernels take a half type with a float32 affine, and keep such statistics."""
    return x.float() if x.dtype in _HALF and x.device.type != "cpu" else x


def _affine(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None):
    """Scale and shift in float32. Without a scale, the statistics of a half x would be kept in half."""
    if x.dtype in _HALF:
        weight = x.new_ones(x.shape[1]) if weight is None else weight
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return tuple(None if tensor is None else tensor.to(wide) for tensor in (weight, bias))


def _sizes(x: torch.Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], x.shape[2:].numel()


def _normalised(x, mean, rstd, weight, bias) -> torch.Tensor:
    """What the ReLU was given, from the statistics."""
    shape = (1, x.shape[1]) + (1,) * (x.dim() - 2)
    width = x.shape[1] // mean.shape[1]
    mean, rstd = (s.repeat_interleave(width, 1).view(-1, *shape[1:]) for s in (mean, rstd))
    y = (x - mean) * rstd
    if weight is not None:
        y = y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)
