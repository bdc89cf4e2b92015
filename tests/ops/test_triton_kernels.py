"""The Triton kernels without a GPU: run in Triton's interpreter, and compiled for several GPUs."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
import torch

from helpers.paths import REPO

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed; PyTorch brings it on Linux only", allow_module_level=True)

from helpers import kernels

pytestmark = pytest.mark.slow
NAMES = {"forward", "backward", "statistics", "apply", "gradient_sums", "apply_gradient"}


@pytest.mark.parametrize("checks", ["triton_checks.py", "roi_align_checks.py"])
def test_kernels_in_the_interpreter(checks):
    environment = {"TRITON_INTERPRET": "1", "GN_DET_OPS": "triton", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", REPO / "tests" / "helpers" / checks],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert re.search(r"^\d+ passed in", run.stdout, re.MULTILINE), run.stdout[-2000:]


HALF, FULL = (torch.bfloat16, True), (torch.float32, False)  # dtype, and whether the layout is channels_last
# The oldest GPU that the kernels support (T4: sm_75, without bfloat16), A100 and H100
TARGETS = [(75, torch.float16, True), (80, *HALF), (80, *FULL), (90, *HALF), (90, *FULL)]


@pytest.mark.parametrize(("capability", "dtype", "channels_last"), TARGETS)
def test_all_kernels_of_a_training_run_compile_quickly(capability, dtype, channels_last):
    """For an R50-FPN at 800 pixels, each kernel takes at most 3 seconds of CPU time, and all take at most 60."""
    variants = kernels.variants_of_training(dtype, channels_last)
    assert {variant.name for variant in variants} == NAMES | ({"pool", "spread"} if channels_last else set())
    assert len(variants) <= 45
    results = kernels.compile_all(variants, capability)
    slowest = max(results, key=lambda result: result[0])
    assert slowest[0] < 3, slowest[:2]
    assert sum(seconds for seconds, *_ in results) < 60
    for _, variant, compiled in results:
        check_memory_operations(variant, compiled.asm["ptx"], channels_last)


def check_memory_operations(variant: kernels.Variant, ptx: str, channels_last: bool) -> None:
    """Check that values are read and written 16 bytes at once, and from the right cache."""
    if channels_last:
        assert re.search(r"ld\.global\S*\.v4\.b32", ptx), variant
        assert not re.search(r"(ld|st)\.global\S*\.b16", ptx), variant
        if variant.name not in ("statistics", "gradient_sums", "spread"):
            assert "st.global.v4.b32" in ptx, variant
    assert ".nc" not in ptx, variant  # such loads would not see what the program itself stored
    if variant.name in ("statistics", "gradient_sums"):
        # What other programs stored is read after the acquire, and not from the L1 cache.
        atomic = re.search(r"atom\.global\.gpu\.acq_rel\S*add", ptx)
        assert atomic, variant
        loads = re.findall(r"ld\.global(\.\w+)", ptx[atomic.end() :])
        assert set(loads) == {".cg"}, (variant, loads)
