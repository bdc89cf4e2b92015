"""Launch Triton kernels: compiled once per machine, launched by a short path, and given up one by one."""

import contextlib
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from filelock import FileLock, Timeout

from ..errors import KernelError

logger = logging.getLogger(__name__)
Constants = tuple[tuple[str, int], ...]  # name and value of each
_Key = tuple[Any, ...]  # device, constants, dtypes
_OPTIONS = ("num_warps", "enable_fp_fusion")  # names of Triton's options among the constants
_RETRY_SECONDS = 300  # a kernel that failed is tried again after this time
_LOCK_SECONDS = 120  # the longest time to wait for another process that compiles the same kernel

_announced = False


class Kernel:
    """A Triton kernel with a cache of its compiled variants.

    Triton's own launch binds and inspects all arguments at each call, which takes several times as long as the
    launch itself. Here the dtypes of the tensors and the constants select a variant.

    Args:
        function: what ``triton.jit`` returns. Its constants are its last parameters.
    """

    def __init__(self, function: Any):
        self.function = function
        self._compiled: dict[_Key, tuple[Any, tuple[int, ...]]] = {}
        self._failed: dict[_Key, float] = {}  # variant -> time of the failure

    def __call__(
        self, programs: int, stream: int, args: Sequence[Any], constants: Constants, aligned: bool = True
    ) -> None:
        """Launch the kernel on the current device.

        Args:
            programs: the number of programs, 1 or more.
            stream: the CUDA stream as an integer.
            args: the arguments that are not constants, in the order of the parameters. The first is a tensor.
            constants: name and value of the constants in the order of the parameters, then Triton's options.
            aligned: whether all tensors start at a multiple of 16 bytes.

        Raises:
            KernelError: the variant cannot be compiled or launched, now or less than 5 minutes ago.
        """
        key = (args[0].get_device(), constants, *[getattr(value, "dtype", value is None) for value in args])
        variant = self._compiled.get(key)
        if variant is None or not aligned:
            self._launch_first(key, programs, args, constants, aligned)
        else:
            compiled, values = variant
            compiled[(programs, 1, 1)](*args, *values, stream=stream)

    def _launch_first(self, key: _Key, programs: int, args: Sequence[Any], constants: Constants, aligned: bool) -> None:
        """Launch the kernel through Triton, which compiles it if its cache on disk does not have it."""
        if time.monotonic() - self._failed.get(key, -_RETRY_SECONDS) < _RETRY_SECONDS:
            raise KernelError(f"{self.function.__name__} failed a short time ago")
        try:
            with _one_process_compiles(f"{self.function.__name__} {key}"):
                compiled = self.function[(programs,)](*args, **dict(constants))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if args[0].is_cuda and torch.cuda.is_current_stream_capturing():
                raise  # the graph lacks this kernel, so it must not be used
            self._failed[key] = time.monotonic()
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            logger.warning(
                f"The Triton kernel {self.function.__name__} failed; PyTorch's kernels replace it ({reason})."
            )
            raise KernelError(reason) from error
        if compiled is not None and aligned:  # None: in Triton's interpreter
            values = tuple(value for name, value in constants if name not in _OPTIONS)
            takes_constants = len(compiled.src.signature) > len(args)  # since Triton 3.3
            self._compiled[key] = compiled, values if takes_constants else ()


def is_aligned(*tensors: torch.Tensor | None) -> bool:
    """Return whether tensors start at a multiple of 16 bytes. Triton compiles other variants for those that do not."""
    addresses = 0
    for tensor in tensors:
        if tensor is not None:
            addresses |= tensor.data_ptr()
    return addresses % 16 == 0


@contextlib.contextmanager
def _one_process_compiles(name: str) -> Iterator[None]:
    """Let other processes of this machine wait in the meantime; they then find the kernel in Triton's cache."""
    global _announced
    if os.environ.get("TRITON_INTERPRET") == "1":
        yield
        return
    if not _announced:
        _announced = True
        logger.info(
            "GN kernels are compiled when they are first needed: about 20 per model, once per machine, below 3 s each."
        )
    folder = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    folder = folder if os.access(folder, os.W_OK) else Path(tempfile.gettempdir())
    digest = hashlib.sha256(f"{triton.__version__} {name}".encode()).hexdigest()[:16]
    lock = FileLock(folder / f"gn_det-{digest}.lock")
    with contextlib.suppress(Timeout, OSError):  # without the lock, both processes compile the kernel
        lock.acquire(timeout=_LOCK_SECONDS)
    try:
        yield
    finally:
        lock.release()


def current_stream(x: torch.Tensor) -> int:
    """Return the CUDA stream of the device of x as an integer; 0 on a CPU (in Triton's interpreter)."""
    if not x.is_cuda:
        return 0
    stream: int = triton.runtime.driver.active.get_current_stream(x.get_device())
    return stream
