"""Choose the implementation of group norm for each call: PyTorch operations, PyTorch kernels or Triton.

=========== =============================================== ==============================
reference   PyTorch operations and autograd                 CUDA, float64, tracers and exporters
native      PyTorch kernels in one autograd node            CPU and other devices
triton      Triton kernels (``fused.py``)                   CUDA, where a caller asks for them
=========== =============================================== ==============================

If the environment variable ``GN_DET_OPS`` is set to one of these names when gn_det is imported, that
implementation runs everywhere, except for float64, tracers and exporters.
"""

import functools
import logging
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from ..errors import GNDetError, KernelError
from . import native

logger = logging.getLogger(__name__)
ENVIRONMENT = "GN_DET_OPS"
NAMES = ("reference", "native", "triton")
_MAX_ELEMENTS = 2**31  # elements per sample, because the kernels use 32-bit offsets within a sample

forced: str | None = os.environ.get(ENVIRONMENT) or None


def choose(x: torch.Tensor, implementation: str | None = None) -> str:
    """Return the name of the implementation for x.

    Args:
        implementation: what the caller asks for; None: what is fastest on the device of x, by measurement.

    Raises:
        GNDetError: ``GN_DET_OPS`` has another name, or names Triton's kernels and x is not on CUDA.
    """
    if torch.jit.is_tracing() or _is_exporting():
        return "reference"
    if torch.compiler.is_compiling() and x.device.type != "cuda":
        return "reference"  # the compiler fuses these operations itself
    if x.dtype == torch.float64 or x.numel() == 0:
        return "reference"
    name = _checked(forced, x) or implementation or _fastest(x)
    return "native" if name == "triton" and not _is_readable(x) else name


def _fastest(x: torch.Tensor) -> str:
    """Return the implementation that is fastest by measurement.

    On an H100, a model in float32 was 0.92 times as fast with earlier versions of the Triton kernels as with PyTorch's.
    The present ones have not been measured, so they run only if a caller asks for them.
    """
    return "reference" if x.is_cuda else "native"


def _checked(name: str | None, x: torch.Tensor) -> str | None:
    """Return the name in ``GN_DET_OPS`` if it can be used for x."""
    if name is not None and name not in NAMES:
        raise GNDetError(f"{ENVIRONMENT} is {name!r}; it must be one of {', '.join(NAMES)}, or unset.")
    if name == "triton" and not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise GNDetError(
            f"{ENVIRONMENT} is triton, but the input is on {x.device.type} and the Triton kernels need CUDA: unset "
            f"{ENVIRONMENT}, or set it to native."
        )
    return name


def forward(
    name: str,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    groups: int,
    eps: float,
    relu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Call the implementation ``name``, native or triton, with the arguments of :func:`native.forward`."""
    outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = _run(
        name, "forward", (x, residual, weight, bias, groups, eps, relu)
    )
    return outputs


def backward(
    name: str,
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
    """Call the implementation ``name``, native or triton, with the arguments of :func:`native.backward`."""
    gradients: tuple[torch.Tensor | None, ...] = _run(
        name, "backward", (dy, x, y, mean, rstd, weight, bias, groups, relu, needs)
    )
    return gradients


def saves_output(name: str) -> bool:
    """Return whether to save the output of a call without residual for the ReLU's backward pass."""
    return native.SAVES_OUTPUT and name != "triton"


def _run(name: str, step: str, args: tuple[object, ...]) -> Any:
    fused = _import_fused() if name == "triton" else None
    if fused is not None:
        try:
            return getattr(fused, step)(*args)
        except KernelError:  # the launcher has logged it
            if forced == "triton":
                raise
    return getattr(native, step)(*args)


def _is_readable(x: torch.Tensor) -> bool:
    """Return whether the kernels can read x; a subclass (fake, distributed) may have no memory."""
    return type(x) in (torch.Tensor, torch.nn.Parameter) and x.numel() < _MAX_ELEMENTS * x.shape[0]


@functools.cache
def _import_fused() -> ModuleType | None:
    """Return the module with the Triton kernels; None if Triton does not work here."""
    try:
        from . import fused  # Triton is not available on every platform and takes a while to import
    except Exception as error:
        if forced == "triton":
            raise
        logger.warning(f"Triton cannot be imported, so GN uses PyTorch's kernels ({type(error).__name__}: {error}).")
        return None
    return fused


def _is_exporting() -> bool:
    exporting = getattr(torch.compiler, "is_exporting", None)  # torch 2.6 does not have it
    return exporting is not None and exporting()
