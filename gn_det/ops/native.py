"""Group norm with residual and ReLU, by PyTorch's own kernels.

This implementation runs on the CPU, and wherever Triton does not run. ``fused.py`` has functions with
the same signatures. The backward function of either module accepts what the forward function of the
other one saved.
"""

from collections.abc import Sequence

import torch

# Save the output for the ReLU's mask. The next layer keeps the output anyway, and computing the mask
# from x again would cost as much as the norm.
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
    """Normalize x, then add the residual and apply the ReLU.

    Args:
        x: ``(N, C, *)``, contiguous or channels_last.
        residual: ``(N, C, *)`` in the memory format of x.
        weight, bias: (C,).

    Returns:
        y: ``(N, C, *)`` in the dtype and memory format of x.
        mean: (N, G) in float32.
        rstd: 1 / sqrt(var + eps), (N, G) in float32.
    """
    weight, bias = _affine(x, weight, bias)
    y, mean, rstd = torch.native_group_norm(_kernel_input(x), weight, bias, *_sizes(x), groups, eps)
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
    """Return the gradients of x, residual, weight and bias.

    Args:
        dy: the gradient of the output, ``(N, C, *)`` in the memory format of x.
        y: the output. None if there is no ReLU, or if its mask is to be computed from x.
        mean, rstd: as returned by :func:`forward`.
        needs: for each of the four gradients, whether it is computed; the others are None.
    """
    dy = dy.to(x.dtype)
    if relu:
        y = _relu_input(x, mean, rstd, weight, bias) if y is None else y
        dy = torch.ops.aten.threshold_backward(dy, y, 0)
    weight, _ = _affine(x, weight, bias)
    mask = [needs[0], needs[2], needs[3]]
    dx, dweight, dbias = torch.ops.aten.native_group_norm_backward(
        _kernel_input(dy), _kernel_input(x), mean, rstd, weight, *_sizes(x), groups, mask
    )
    return dx.to(x.dtype) if needs[0] else None, dy if needs[1] else None, dweight, dbias


def _kernel_input(x: torch.Tensor) -> torch.Tensor:
    """Return x, converted from half precision to float32 unless it is on the CPU.

    Only PyTorch's CPU kernels accept a half-precision x with a float32 weight, and then compute
    float32 statistics.
    """
    return x.float() if x.dtype in _HALF and x.device.type != "cpu" else x


def _affine(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return weight and bias in float32, or in float64 if x is float64.

    If x is half precision, a missing weight becomes ones: without a weight, PyTorch's kernels would
    compute half-precision statistics.
    """
    if x.dtype in _HALF:
        weight = x.new_ones(x.shape[1]) if weight is None else weight
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return None if weight is None else weight.to(dtype), None if bias is None else bias.to(dtype)


def _sizes(x: torch.Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], x.shape[2:].numel()


def _relu_input(
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Compute the input of the ReLU again, for a layer without a residual."""
    shape = (1, x.shape[1]) + (1,) * (x.dim() - 2)
    group_width = x.shape[1] // mean.shape[1]
    mean, rstd = (s.repeat_interleave(group_width, 1).view(-1, *shape[1:]) for s in (mean, rstd))
    y = (x - mean) * rstd
    if weight is not None:
        y = y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)
