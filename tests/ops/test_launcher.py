"""The launcher of Triton kernels, with a stand-in for Triton, which needs a GPU to launch."""

import importlib.util
import logging
import multiprocessing
import os
import time
import types

import pytest
import torch

from gn_det.errors import KernelError

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed; PyTorch brings it on Linux only", allow_module_level=True)

from gn_det.ops import launcher
from gn_det.ops.launcher import Kernel

CONSTANTS = (("PIXELS", 64), ("RELU", True), ("num_warps", 4), ("enable_fp_fusion", True))


class FakeTriton:
    """A ``triton.jit`` function that records how it is launched.

    Args:
        signature: number of parameters in the signature of a compiled kernel.
        errors: raised by the next launches, one each.
    """

    def __init__(self, signature: int = 5, errors: list[Exception] | None = None):
        self.__name__, self.signature, self.errors = "fake", dict.fromkeys(range(signature)), errors or []
        self.compilations: list[tuple] = []
        self.launches: list[tuple] = []

    def __getitem__(self, grid):
        def launch(*args, **constants):
            self.compilations.append((grid, args, constants))
            if self.errors:
                raise self.errors.pop(0)
            return self.Compiled(self)

        return launch

    class Compiled:
        def __init__(self, function):
            self.function, self.src = function, types.SimpleNamespace(signature=function.signature)

        def __getitem__(self, grid):
            return lambda *args, stream: self.function.launches.append((grid, args, stream))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Launch as on a GPU, with Triton's cache in a new folder."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(launcher, "_announced", False)
    return tmp_path


@pytest.mark.parametrize(("signature", "values"), [(3, ()), (5, (64, True))])  # before and since Triton 3.3
def test_second_launch_takes_the_short_path(signature, values):
    function = FakeTriton(signature)
    kernel, x = Kernel(function), torch.zeros(8)
    for programs in (2, 3):
        kernel(programs, 7, (x, None, 5), CONSTANTS)
    assert function.compilations == [((2,), (x, None, 5), dict(CONSTANTS))]
    assert function.launches == [((3, 1, 1), (x, None, 5, *values), 7)]


def test_dtypes_missing_tensors_and_constants_select_the_variant():
    function = FakeTriton()
    kernel, x = Kernel(function), torch.zeros(8)
    calls = [((x, x), CONSTANTS), ((x, None), CONSTANTS), ((x.half(), x), CONSTANTS), ((x, x), CONSTANTS[1:])]
    for _ in range(2):
        for args, constants in calls:
            kernel(1, 0, args, constants)
    assert len(function.compilations) == len(function.launches) == 4


def test_misaligned_tensors_are_launched_by_triton():
    """A compiled kernel reads 16 bytes at once; Triton has another one for addresses that do not allow it."""
    function = FakeTriton()
    kernel, x = Kernel(function), torch.zeros(8)
    kernel(1, 0, (x,), CONSTANTS)
    kernel(1, 0, (x[1:],), CONSTANTS, launcher.is_aligned(x[1:]))
    kernel(1, 0, (x,), CONSTANTS, launcher.is_aligned(x, None))
    assert len(function.compilations) == 2
    assert len(function.launches) == 1


def test_failed_variant_is_given_up_alone_and_not_for_ever(monkeypatch, caplog):
    function = FakeTriton(errors=[RuntimeError("Failed to find\nC compiler.")])
    kernel, x = Kernel(function), torch.zeros(8)
    with caplog.at_level(logging.WARNING, "gn_det"):
        for _ in range(2):
            with pytest.raises(KernelError):
                kernel(1, 0, (x,), CONSTANTS)
    (record,) = caplog.records
    assert "fake failed; PyTorch's kernels replace it (RuntimeError: Failed to find C compiler.)" in record.getMessage()
    kernel(1, 0, (x.half(),), CONSTANTS)
    assert len(function.compilations) == 2
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 301)
    kernel(1, 0, (x,), CONSTANTS)
    assert len(function.compilations) == 3


def test_out_of_memory_is_raised():
    kernel = Kernel(FakeTriton(errors=[torch.OutOfMemoryError("no memory")]))
    with pytest.raises(torch.OutOfMemoryError):
        kernel(1, 0, (torch.zeros(8),), CONSTANTS)
    kernel(1, 0, (torch.zeros(8),), CONSTANTS)


def test_failure_within_a_graph_capture_is_raised(monkeypatch):
    """A graph in which another kernel takes the place would do so at each replay."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    x = types.SimpleNamespace(is_cuda=True, get_device=lambda: 0, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="no"):
        Kernel(FakeTriton(errors=[RuntimeError("no")]))(1, 0, (x,), CONSTANTS)


def test_first_compilation_is_announced_once(caplog):
    kernel = Kernel(FakeTriton())
    with caplog.at_level(logging.INFO, "gn_det"):
        for dtype in (torch.float32, torch.float16):
            kernel(1, 0, (torch.zeros(8, dtype=dtype),), CONSTANTS)
    (record,) = caplog.records
    assert "GN kernels are compiled when they are first needed" in record.getMessage()


class SlowTriton(FakeTriton):
    """Takes 0.3 s to compile, unless the cache has the kernel."""

    def __getitem__(self, grid):
        launch = super().__getitem__(grid)

        def compile_if_needed(*args, **constants):
            cached = os.path.join(os.environ["TRITON_CACHE_DIR"], "kernel")
            if not os.path.exists(cached):
                time.sleep(0.3)
                with open(cached, "a") as file:
                    file.write("compiled ")
            with open(cached + "-uses", "a") as file:
                file.write("used ")
            return launch(*args, **constants)

        return compile_if_needed


def _launch_slow_kernel() -> None:
    Kernel(SlowTriton())(1, 0, (torch.zeros(8),), CONSTANTS)


def test_one_of_several_processes_compiles(cache):
    processes = [multiprocessing.get_context("fork").Process(target=_launch_slow_kernel) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert (cache / "kernel").read_text() == "compiled "
    assert (cache / "kernel-uses").read_text() == "used " * 3


def test_cache_folder_that_does_not_exist_yet(cache, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache / "not" / "there"))
    _launch = FakeTriton()
    Kernel(_launch)(1, 0, (torch.zeros(8),), CONSTANTS)
    assert _launch.compilations
