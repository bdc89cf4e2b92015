"""Group normalization, residual sum and ReLU as one differentiable function.

Shapes: N samples, C channels, G groups; * is any number of spatial dimensions. ``mean`` and
``rstd`` = 1 / sqrt(var + eps) have shape (N, G).

The forward pass saves x, mean, rstd and the weight for the backward pass. With a ReLU it also
saves the output y, if there is a residual or if the implementation asks for y; otherwise it saves
the bias, from which the ReLU's mask is computed again. Saving y needs no additional memory, because
the next layer keeps it as its input.
"""

from collections.abc import Callable, Sequence

import torch
from torch.autograd.function import once_differentiable

from . import reference, select

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ACTIVATIONS = (None, "relu")

# implementation, x, residual, weight, bias, groups, eps, relu
_Inputs = tuple[str, torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, int, float, bool]
_Gradients = tuple[torch.Tensor | None, ...]


class _Context:
    """The type of autograd's context, with what the forward pass stores in it for the backward pass.

    Autograd makes the object, which is no instance of this class.
    """

    implementation: str
    groups: int
    relu: bool
    needs_input_grad: tuple[bool, ...]
    # x, y, mean, rstd, weight, bias
    saved_tensors: tuple[
        torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None
    ]

    def save_for_backward(self, *tensors: torch.Tensor | None) -> None:
        """Store the tensors that ``saved_tensors`` has in the backward pass."""


def group_norm(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    residual: torch.Tensor | None = None,
    activation: str | None = None,
    implementation: str | None = None,
) -> torch.Tensor:
    """Compute act(GN(x) * weight + bias + residual), with statistics, weight and bias in float32.

    Autocast does not change the dtype of x. (``torch.nn.functional.group_norm`` converts x to
    float32 under autocast on CUDA.)

    Args:
        x: ``(N, C, *)`` of float32, bfloat16, float16 or float64. It is copied unless it is
            contiguous or channels_last. N may be 0.
        groups: the number of groups G, which must divide C.
        weight, bias: ``(C,)`` of any of these dtypes.
        eps: the constant that is added to the variance.
        residual: a tensor of the shape of x.
        activation: None or "relu".
        implementation: "native" or "triton" (on CUDA); None: the fastest one by measurement. See
            :mod:`gn_det.ops.select`.

    Returns:
        ``(N, C, *)`` in the dtype and memory format of x. It can be differentiated once.

    Raises:
        ValueError: an argument has a wrong shape, dtype or value. As in ``nn.GroupNorm``, this is a
            mistake in the calling code.
        GNDetError: the environment variable ``GN_DET_OPS`` names an unknown implementation, or one
            that cannot run on the device of x.
    """
    if not torch.jit.is_tracing():  # in a trace, sizes are tensors
        _check(x, groups, weight, bias, residual, activation)
    name = select.choose(x, implementation)
    if name == "reference":
        return reference.group_norm(x, groups, weight, bias, eps, residual, activation)
    memory_format = _memory_format(x)
    x = x.contiguous(memory_format=memory_format)
    if residual is not None:
        residual = residual.contiguous(memory_format=memory_format)
    args = (name, x, residual, _contiguous(weight), _contiguous(bias), groups, float(eps), activation == "relu")
    y: torch.Tensor
    if torch.compiler.is_compiling():
        y = _forward_operator(*args)[0]
    else:
        y = _GroupNorm.apply(*args) if torch.is_grad_enabled() else select.forward(*args)[0]
    return y


def _contiguous(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return tensor if tensor is None or tensor.is_contiguous() else tensor.contiguous()


def _check(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: str | None,
) -> None:
    if x.dim() < 2 or x.dtype not in DTYPES:
        raise ValueError(
            f"x has {_describe(x)}; it must have shape (N, C, *) and dtype float32, bfloat16, float16 or float64."
        )
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"groups is {groups}; it must be 1 or more and divide the {channels} channels of x.")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.shape != (channels,):
            raise ValueError(
                f"{name} has {_describe(tensor)}; for {channels} channels it must have shape ({channels},)."
            )
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual has {_describe(residual)}, but x has {_describe(x)}; their shapes must be equal.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; it must be None or 'relu'.")


def _describe(tensor: torch.Tensor) -> str:
    return f"shape {tuple(tensor.shape)} and dtype {str(tensor.dtype).removeprefix('torch.')}"


def _memory_format(x: torch.Tensor) -> torch.memory_format:
    """Return channels_last if the channels of x are adjacent in memory, else contiguous."""
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if channels_last is None or x.is_contiguous() or x.stride(1) != 1:
        return torch.contiguous_format
    return channels_last


class _GroupNorm(torch.autograd.Function):
    """The function in eager mode, with less than half the overhead of a ``torch.library`` operator."""

    @staticmethod
    def forward(ctx: _Context, *args: *_Inputs) -> torch.Tensor:
        outputs = select.forward(*args)
        _save_for_backward(ctx, args, outputs)
        return outputs[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, dy: torch.Tensor) -> _Gradients:
        return _gradients(ctx, dy, select.backward)


def _save_for_backward(
    ctx: _Context, inputs: _Inputs, outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    ctx.implementation, x, residual, weight, bias, ctx.groups, _, ctx.relu = inputs
    y, mean, rstd = outputs
    saves_y = ctx.relu and (residual is not None or select.saves_output(ctx.implementation))
    mask_from_x = ctx.relu and not saves_y  # computing the mask from x needs the bias
    ctx.save_for_backward(x, y if saves_y else None, mean, rstd, weight, bias if mask_from_x else None)


def _gradients(ctx: _Context, dy: torch.Tensor, backward: Callable[..., _Gradients]) -> _Gradients:
    """Return the gradient of each input of the forward pass.

    Args:
        backward: :func:`select.backward` or the operator that wraps it.
    """
    x, y, mean, rstd, weight, bias = ctx.saved_tensors
    required = ctx.needs_input_grad[1:5]
    dy = dy.contiguous(memory_format=_memory_format(x))
    # Without a ReLU the gradient of the residual is dy itself.
    computed = [required[0], required[1] and ctx.relu, *required[2:]]
    dx, dresidual, dweight, dbias = backward(
        ctx.implementation, dy, x, y, mean, rstd, weight, bias, ctx.groups, ctx.relu, computed
    )
    if required[1] and not ctx.relu:
        dresidual = dy
    gradients = (dx, dresidual, dweight, dbias)
    return None, *(g if r else None for g, r in zip(gradients, required, strict=True)), None, None, None


# The same function as operators for torch.compile, which does not trace into an operator.


@torch.library.custom_op("gn_det::group_norm", mutates_args=())
def _forward_operator(
    implementation: str,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    groups: int,
    eps: float,
    relu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return select.forward(implementation, x, residual, weight, bias, groups, eps, relu)


@_forward_operator.register_fake
def _(
    implementation: str,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    groups: int,
    eps: float,
    relu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    statistics = x.new_empty((x.shape[0], groups), dtype=torch.float32)
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


@torch.library.custom_op("gn_det::group_norm_backward", mutates_args=())
def _backward_operator(
    implementation: str,
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
    """Return the gradients; those not needed are empty, because an operator cannot return None."""
    gradients = select.backward(implementation, dy, x, y, mean, rstd, weight, bias, groups, relu, needs)
    dx, dresidual, dweight, dbias = (x.new_empty(0) if gradient is None else gradient for gradient in gradients)
    return dx, dresidual, dweight, dbias


@_backward_operator.register_fake
def _(
    implementation: str,
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
) -> tuple[torch.Tensor, ...]:
    affine = x.new_empty(x.shape[1], dtype=torch.float32)
    shapes = (x, x, affine, affine)
    return tuple(torch.empty_like(t) if need else x.new_empty(0) for t, need in zip(shapes, needs, strict=True))


_forward_operator.register_autograd(
    lambda ctx, dy, *_: _gradients(ctx, dy, _backward_operator),
    setup_context=lambda ctx, inputs, output: _save_for_backward(ctx, inputs, output),
)
