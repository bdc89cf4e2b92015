"""The Triton kernels without a GPU: run in Triton's interpreter and compiled for an H200."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
import torch

from helpers.paths import REPO

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="Triton is not installed; PyTorch brings it on Linux only"
    ),
]
CHECKS = REPO / "tests" / "helpers" / "triton_checks.py"


def test_kernels_in_the_interpreter():
    environment = {"TRITON_INTERPRET": "1", "GN_DET_OPS": "triton", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", CHECKS],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert re.search(r"^\d+ passed in", run.stdout, re.MULTILINE), run.stdout[-2000:]


class _Compiled:
    """A stand-in for a kernel that compiles it for the arguments of the call and stores its PTX in ``ptx``."""

    def __init__(self, kernel, ptx: dict[str, str]):
        self.kernel, self.ptx = kernel, ptx

    def __getitem__(self, grid):
        return self.compile

    def compile(self, *args, **constants):
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        options = {name: constants.pop(name) for name in ("num_warps", "enable_fp_fusion")}
        arguments = dict(zip(self.kernel.arg_names, args, strict=False))
        constants |= {name: None for name, value in arguments.items() if value is None}
        signature = {
            name: "constexpr" if name in constants else _type(arguments[name]) for name in self.kernel.arg_names
        }
        aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
        source = ASTSource(self.kernel, signature=signature, constexprs=constants, attrs=aligned)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert compiled.asm["cubin"]
        self.ptx[self.kernel.__name__] = compiled.asm["ptx"]


def _type(value) -> str:
    if isinstance(value, torch.Tensor):
        return {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def test_kernels_compiled_for_an_h200(monkeypatch, tmp_path):
    """For feature maps of an R50-FPN, values are read and written 16 bytes at once."""
    pytest.importorskip("triton", minversion="3.3")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from gn_det.ops import fused, triton_split, triton_whole

    kernels: dict[str, str] = {}
    for module in (triton_split, triton_whole):
        for name, kernel in vars(module).copy().items():
            if hasattr(kernel, "arg_names") and not name.startswith("_") and kernel.__module__ == module.__name__:
                monkeypatch.setattr(module, name, _Compiled(kernel, kernels))
    for shape in ((2, 256, 200, 304), (512, 256, 7, 7)):
        for residual in (False, True):
            x = torch.empty(shape, dtype=torch.bfloat16, device="meta").contiguous(memory_format=torch.channels_last)
            weight = torch.empty(256, device="meta")
            y, mean, rstd = fused.forward(x, x if residual else None, weight, weight, 32, 1e-5, True)
            needs = (True, residual, True, True)
            fused.backward(x, x, y if residual else None, mean, rstd, weight, weight, 32, True, needs)
    small = {"finish_statistics", "finish_sums"}
    assert set(kernels) == small | {"forward", "backward", "statistics", "apply", "gradient_sums", "apply_gradient"}
    for name in set(kernels) - small:
        assert "ld.global.v4.b32" in kernels[name], name
        assert not re.search(r"(ld|st)\.global\.b16", kernels[name]), name
    for name in ("forward", "backward", "apply", "apply_gradient"):
        assert "st.global.v4.b32" in kernels[name], name
