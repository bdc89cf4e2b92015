"""Which implementation of the operation runs where.

=========== =============================================== ===========================
reference   PyTorch's operations and autograd                float64; tracers, exporters
native      PyTorch's kernels in one autograd node           CPU, and all else
triton      kernels of its own (``fused.py``)                CUDA, where Triton works
=========== =============================================== ===========================

``GN_DET_OPS`` set to one of these names takes that one everywhere, but for float64, tracers and exporters.
"""

import logging
import os
from types import ModuleType

import torch

from ..errors import GNDetError
from . import native

logger = logging.getLogger(__name__)
ENVIRONMENT = "GN_DET_OPS"
NAMES = ("reference", "native", "triton")
_LARGEST = 2**31  # elements of a sample, within which the kernels count in 32 bits

_failure: str | None = None  # why Triton is not tried again in this process


@torch.compiler.assume_constant_result
def forced() -> str | None:
    """What ``GN_DET_OPS`` asks for.

    Raises:
        GNDetError: that is no implementation.
    """
    name = os.environ.get(ENVIRONMENT) or None
    if name is not None and name not in NAMES:
        raise GNDetError(f"{ENVIRONMENT} is {name!r}; it is one of {', '.join(NAMES)}, or unset.")
    return name


def is_plain(x: torch.Tensor) -> bool:
    """Whether the reference is to run: where operations are recorded to run elsewhere, and for float64."""
    if torch.jit.is_tracing() or _is_exporting():
        return True
    if torch.compiler.is_compiling() and x.device.type != "cuda":
        return True  # the compiler fuses these operations itself
    return x.dtype == torch.float64 or x.numel() == 0 or forced() == "reference"


def forward(x: torch.Tensor, *args) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The chosen implementation's, with the signature of :func:`native.forward`."""
    return _run("forward", x, (x, *args))


def backward(dy: torch.Tensor, x: torch.Tensor, *args) -> tuple[torch.Tensor | None, ...]:
    """The chosen implementation's, with the signature of :func:`native.backward`."""
    return _run("backward", x, (dy, x, *args))


def saves_output(x: torch.Tensor) -> bool:
    """Whether the backward wants the output for the ReLU's mask also where there is no residual."""
    return native.SAVES_OUTPUT and not _prefers_triton(x)


def _run(step: str, x: torch.Tensor, args: tuple):
    if not (_prefers_triton(x) and _is_readable(x)):
        return getattr(native, step)(*args)
    try:
        return getattr(_fused(), step)(*args)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if forced() == "triton":
            raise
        _give_up(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return getattr(native, step)(*args)


def _prefers_triton(x: torch.Tensor) -> bool:
    name = forced()
    if name is None:
        return x.is_cuda and _failure is None
    if name == "triton" and not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise GNDetError(f"{ENVIRONMENT} is triton, whose kernels need CUDA, and x is on {x.device.type}: unset it.")
    return name == "triton"


def _is_readable(x: torch.Tensor) -> bool:
    """Whether kernels can read x: a subclass (a fake or a distributed tensor) may have no memory of its own."""
    return type(x) in (torch.Tensor, torch.nn.Parameter) and x.numel() < _LARGEST * x.shape[0]


def _give_up(reason: str) -> None:
    global _failure
    if _failure is None:
        logger.warning(f"Triton's kernels do not run here, so GN takes PyTorch's, which are slower ({reason}).")
    _failure = reason


def _fused() -> ModuleType:
    from . import fused  # Triton is not on every platform, and takes a while to import

    return fused


def _is_exporting() -> bool:
    exporting = getattr(torch.compiler, "is_exporting", None)  # which torch 2.6 has not
    return exporting is not None and exporting()
