"""Choose the implementation of group norm for each call: PyTorch operations, PyTorch kernels or Triton.

=========== =============================================== ==============================
reference   PyTorch operations and autograd                 float64, tracers and exporters
native      PyTorch kernels in one autograd node            CPU and other devices
triton      Triton kernels (``fused.py``)                   CUDA, where Triton works
=========== =============================================== ==============================

If the environment variable ``GN_DET_OPS`` is set to one of these names, that implementation runs
everywhere, except for float64, tracers and exporters.
"""

import logging
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from ..errors import GNDetError
from . import native

logger = logging.getLogger(__name__)
ENVIRONMENT = "GN_DET_OPS"
NAMES = ("reference", "native", "triton")
_MAX_ELEMENTS = 2**31  # elements per sample, because the kernels use 32-bit offsets within a sample

_failure: str | None = None  # why the Triton kernels are no longer used in this process


@torch.compiler.assume_constant_result
def forced_implementation() -> str | None:
    """Return the implementation that ``GN_DET_OPS`` names, or None if it is not set.

    Raises:
        GNDetError: there is no implementation of that name.
    """
    name = os.environ.get(ENVIRONMENT) or None
    if name is not None and name not in NAMES:
        raise GNDetError(f"{ENVIRONMENT} is {name!r}; it must be one of {', '.join(NAMES)}, or unset.")
    return name


def uses_reference(x: torch.Tensor) -> bool:
    """Return whether the reference implementation is used for x.

    It runs where operations are recorded (tracers, exporters, the compiler except on CUDA), for
    float64, for empty tensors, and if ``GN_DET_OPS`` is "reference".
    """
    if torch.jit.is_tracing() or _is_exporting():
        return True
    if torch.compiler.is_compiling() and x.device.type != "cuda":
        return True  # the compiler fuses these operations itself
    return x.dtype == torch.float64 or x.numel() == 0 or forced_implementation() == "reference"


def forward(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    groups: int,
    eps: float,
    relu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Call the chosen implementation with the arguments of :func:`native.forward`."""
    outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = _run(
        "forward", x, (x, residual, weight, bias, groups, eps, relu)
    )
    return outputs


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
    """Call the chosen implementation with the arguments of :func:`native.backward`."""
    gradients: tuple[torch.Tensor | None, ...] = _run(
        "backward", x, (dy, x, y, mean, rstd, weight, bias, groups, relu, needs)
    )
    return gradients


def saves_output(x: torch.Tensor) -> bool:
    """Return whether to save the output of a call without residual for the ReLU's backward pass."""
    return native.SAVES_OUTPUT and not _prefers_triton(x)


def _run(step: str, x: torch.Tensor, args: tuple[object, ...]) -> Any:
    if not (_prefers_triton(x) and _is_readable(x)):
        return getattr(native, step)(*args)
    try:
        return getattr(_import_fused(), step)(*args)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if forced_implementation() == "triton":
            raise
        _disable_triton(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return getattr(native, step)(*args)


def _prefers_triton(x: torch.Tensor) -> bool:
    name: str | None = forced_implementation()
    if name is None:
        return x.is_cuda and _failure is None
    if name == "triton" and not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise GNDetError(
            f"{ENVIRONMENT} is triton, but the input is on {x.device.type} and the Triton kernels need CUDA: unset "
            f"{ENVIRONMENT}, or set it to native."
        )
    return name == "triton"


def _is_readable(x: torch.Tensor) -> bool:
    """Return whether the kernels can read x; a subclass (fake, distributed) may have no memory."""
    return type(x) in (torch.Tensor, torch.nn.Parameter) and x.numel() < _MAX_ELEMENTS * x.shape[0]


def _disable_triton(reason: str) -> None:
    global _failure
    if _failure is None:
        logger.warning(f"The Triton kernels failed, so GN uses PyTorch's slower kernels from now on ({reason}).")
    _failure = reason


def _import_fused() -> ModuleType:
    from . import fused  # Triton is not available on every platform and takes a while to import

    return fused


def _is_exporting() -> bool:
    exporting = getattr(torch.compiler, "is_exporting", None)  # torch 2.6 does not have it
    return exporting is not None and exporting()
