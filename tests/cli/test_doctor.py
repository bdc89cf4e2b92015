"""``gn-det doctor`` names what is broken on machines that are simulated here, with the fix and exit code 1."""

import importlib.metadata
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torchvision

from gn_det.cli import doctor
from helpers.paths import TOOLS


def problems(check) -> list[tuple[str, str, bool]]:
    return [(f.problem, f.fix, f.broken) for f in check() if f.problem]


def test_what_is_installed_is_shown_and_nothing_is_broken(run_cli):
    code, out, _ = run_cli("doctor.py")
    assert code == 0 and "Nothing is broken." in out
    names = {line.split("  ")[0] for line in out.splitlines()}
    assert names >= {
        "Python",
        "torch",
        "torchvision",
        "Triton",
        "detectron2",
        "pycocotools",
        "hotcoco",
        "OpenCV",
        "fonts",
    }
    assert torch.__version__ in out and "the copy in labgym" in out or "upstream" in out


@pytest.mark.parametrize("module", ["detectron2", "yaml", "torch"])
def test_the_script_runs_where_a_package_is_missing(module):
    code = f"import sys, runpy; sys.argv = ['doctor']; sys.modules[{module!r}] = None; "
    code += f"runpy.run_path({str(TOOLS / 'doctor.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"broken: {'PyYAML' if module == 'yaml' else module}: is not installed: pip install " in done.stdout


def test_torchvision_of_another_torch_is_broken(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["numpy", "torch==2.0.1"])
    ((problem, fix, broken),) = problems(doctor._check_torch)
    assert problem == "it was built for torch 2.0.1" and "together" in fix and broken


def test_torchvision_whose_operators_do_not_run_is_broken(monkeypatch):
    def fail(*_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", fail)
    ((problem, _, broken),) = problems(doctor._check_torch)
    assert "operator torchvision::nms does not exist" in problem and broken


def test_old_versions_are_broken(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu121")
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: None)
    assert problems(doctor._check_torch) == [
        ("gn_det needs PyTorch 2.6 or newer", "pip install -U torch torchvision", True)
    ]
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 0))
    assert problems(doctor._check_python)[0][2]


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a driver, and a function that sets what PyTorch sees of it."""

    def make(count: int, cuda: str | None, major: int = 9, archs: tuple = ("sm_80", "sm_90")) -> None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(doctor, "_driver", lambda: "550.54, NVIDIA H100")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(archs))
        properties = SimpleNamespace(name="H100", total_memory=80 * 2**30, major=major, minor=0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)

    return make


def test_a_gpu_that_pytorch_cannot_use_is_broken(gpu, monkeypatch):
    gpu(0, None)
    assert problems(doctor._check_gpus)[0][::2] == ("PyTorch is a build for CPUs only", True)
    gpu(0, "13.2")
    assert "built for CUDA 13.2" in problems(doctor._check_gpus)[0][0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not problems(doctor._check_gpus)
    gpu(2, "13.2", major=12)
    assert [broken for *_, broken in problems(doctor._check_gpus)] == [True, True]
    gpu(1, "13.2")
    assert "H100, 80 GB, sm_90" in [finding.found for finding in doctor._check_gpus()]
    monkeypatch.setattr(doctor, "_version", lambda name: "")
    assert "GPU.MIXED_PRECISION runs without" in problems(doctor._check_gpus)[0][0]


def test_opencv_is_not_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    ((problem, fix, broken),) = problems(doctor._check_opencv)
    assert "pictures are not drawn" in problem and fix == "pip install opencv-python-headless" and not broken


def test_two_builds_of_opencv_are_noted(monkeypatch):
    pytest.importorskip("cv2")
    monkeypatch.setattr(doctor, "_version", lambda name: "4.1")
    assert "overwrite each other's files" in problems(doctor._check_opencv)[0][0]


def test_other_versions_of_hotcoco_are_broken(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: "2.0.0")
    ((_, fix, broken),) = problems(doctor._check_coco)
    assert fix == 'pip install "hotcoco>=1.3,<2"' and broken


def test_small_shared_memory_and_a_read_only_cache_are_noted(monkeypatch):
    monkeypatch.setattr(doctor.os.path, "isdir", lambda path: True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=64 * 2**20))
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    text = doctor.format_findings(list(doctor._check_machine()))
    assert (
        "--shm-size 8g" in text and "set FVCORE_CACHE" in text and "install gcc" in text and "Nothing is broken" in text
    )


def test_a_check_that_fails_is_a_finding(monkeypatch):
    def _check_x():
        raise OSError("libcuda.so: bad\nELF header")

    monkeypatch.setattr(doctor, "CHECKS", (_check_x,))
    (finding,) = doctor.examine()
    assert finding.name == "x" and finding.problem == "OSError: ELF header" and finding.broken
    assert doctor.format_findings([finding]).endswith("broken: x: OSError: ELF header: see the error.")
