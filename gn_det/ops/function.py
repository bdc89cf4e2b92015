"""GN + residual + ReLU as one differentiable operation.

Shapes: N samples, C channels, G groups; * is any number of spatial dimensions. mean and rstd = 1 / sqrt(var + eps): (N, G).

Kept for backward are x, mean, rstd and the affine; and, where there is a ReLU, the output y if there is a residual too, or
if the implementation asks for it. The layer that follows keeps y as its input anyway, so it takes no memory of its own.
"""

from collections.abc import Callable, Sequence

import torch
from torch.autograd.function import once_differentiable

from . import reference, select

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ACTIVATIONS = (None, "relu")


def group_norm(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    residual: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """act(GN(x) * weight + bias + residual), with statistics and affine in float32.

    Under autocast x is taken as it is, unlike by ``torch.nn.functional.group_norm``, which makes it float32 on CUDA.

    Args:
        x: ``(N, C, *)``, float32, bfloat16, float16 or float64; contiguous or channels_last (else it is copied). N may be 0.
        weight, bias: (C,), of any of these dtypes.
        residual: of x's shape.
        activation: None or "relu".

    Returns:
        ``(N, C, *)`` in x's dtype and memory format. It can be differentiated once.

    Raises:
        ValueError: the arguments do not fit together, which is a mistake in the calling code, as for ``nn.GroupNorm``.
        GNDetError: the environment variable ``GN_DET_OPS`` cannot be followed.
    """
    if not torch.jit.is_tracing():  # in which sizes are tensors
        _check(x, groups, weight, bias, residual, activation)
    if select.is_plain(x):
        return reference.group_norm(x, groups, weight, bias, eps, residual, activation)
    memory_format = _memory_format(x)
    x = x.contiguous(memory_format=memory_format)
    if residual is not None:
        residual = residual.contiguous(memory_format=memory_format)
    args = (x, residual, weight, bias, groups, eps, activation == "relu")
    if torch.compiler.is_compiling():
        return _operator(*args)[0]
    return _GroupNorm.apply(*args) if torch.is_grad_enabled() else select.forward(*args)[0]


def _check(x, groups, weight, bias, residual, activation) -> None:
    if x.dim() < 2 or x.dtype not in DTYPES:
        raise ValueError(f"x is {_described(x)}; it has to be (N, C, *), of float32, bfloat16, float16 or float64.")
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"{channels} channels cannot be divided into {groups} groups.")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.shape != (channels,):
            raise ValueError(f"{name} is {_described(tensor)}; for {channels} channels it has to be ({channels},).")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual is {_described(residual)} and x is {_described(x)}: they have to be of one shape.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; it has to be None or 'relu'.")


def _described(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def _memory_format(x: torch.Tensor) -> torch.memory_format:
    """channels_last where x's channels lie side by side, also in a crop of such a map; else contiguous."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if last is None or x.is_contiguous() or x.stride(1) != 1:
        return torch.contiguous_format
    return last


class _GroupNorm(torch.autograd.Function):
    """The operation in eager mode, at less than half of what an operator of the library costs to call."""

    @staticmethod
    def forward(ctx, *args):
        output = select.forward(*args)
        _save(ctx, args, output)
        return output[0]

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return _gradients(ctx, dy, select.backward)


def _save(ctx, inputs: tuple, output: tuple[torch.Tensor, ...]) -> None:
    x, residual, weight, bias, ctx.groups, _, ctx.relu = inputs
    y, mean, rstd = output
    keeps_output = ctx.relu and (residual is not None or select.saves_output(x))
    mask_from_x = ctx.relu and not keeps_output  # which takes the shift
    ctx.save_for_backward(x, y if keeps_output else None, mean, rstd, weight, bias if mask_from_x else None)


def _gradients(ctx, dy: torch.Tensor, backward: Callable) -> tuple:
    """dL/d(inputs) by ``backward``, :func:`select.backward` or the operator."""
    x, *saved = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:4]
    dy = dy.contiguous(memory_format=_memory_format(x))
    needs = [wanted[0], wanted[1] and ctx.relu, *wanted[2:]]  # without a ReLU dL/dresidual is dL/dy itself
    dx, dresidual, dweight, dbias = backward(dy, x, *saved, ctx.groups, ctx.relu, needs)
    if wanted[1] and not ctx.relu:
        dresidual = dy
    gradients = (dx, dresidual, dweight, dbias)
    return *(g if w else None for g, w in zip(gradients, wanted, strict=True)), None, None, None


# The same for torch.compile, which takes an operator of the library as it is, and does not look into it.


@torch.library.custom_op("gn_det::group_norm", mutates_args=())
def _operator(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    groups: int,
    eps: float,
    relu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return select.forward(x, residual, weight, bias, groups, eps, relu)


@_operator.register_fake
def _(x, residual, weight, bias, groups, eps, relu):
    statistics = x.new_empty((x.shape[0], groups), dtype=torch.float32)
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


@torch.library.custom_op("gn_det::group_norm_backward", mutates_args=())
def _operator_backward(
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """An operator cannot return None: what is not needed is empty."""
    gradients = select.backward(dy, x, y, mean, rstd, weight, bias, groups, relu, needs)
    dx, dresidual, dweight, dbias = (x.new_empty(0) if gradient is None else gradient for gradient in gradients)
    return dx, dresidual, dweight, dbias


@_operator_backward.register_fake
def _(dy, x, y, mean, rstd, weight, bias, groups, relu, needs):
    affine = x.new_empty(x.shape[1], dtype=torch.float32)
    shapes = (x, x, affine, affine)
    return tuple(torch.empty_like(t) if need else x.new_empty(0) for t, need in zip(shapes, needs, strict=True))


_operator.register_autograd(
    lambda ctx, dy, *_: _gradients(ctx, dy, _operator_backward),
    setup_context=lambda ctx, inputs, output: _save(ctx, inputs, output),
)
