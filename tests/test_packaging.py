"""The wheel, the command of the demo, and the bridge that provides detectron2 under its own name."""

import importlib
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import detectron2
import pytest

from helpers.commands import run_command
from helpers.forks import in_a_fork
from helpers.paths import REPO

BRIDGED = "LabGym" in Path(detectron2.__file__).parts


def python(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-W", "ignore", *arguments], capture_output=True, text=True, **options)


def test_import_without_detectron2_explains_how_to_install_it():
    done = python("-c", "import sys; sys.modules['detectron2'] = None; import gn_det", cwd=REPO)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("ImportError: gn_det needs detectron2, which is not on PyPI: ")
    assert "https://github.com/facebookresearch/detectron2" in last and "During handling" not in done.stderr


@pytest.mark.slow
def test_wheel_contains_configs_and_does_not_require_detectron2(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("gn_det", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (REPO / name).is_dir() else shutil.copy
        copy(REPO / name, source / name)
    done = python(*f"-m pip wheel -q --no-deps --no-index --no-build-isolation -w {tmp_path} .".split(), cwd=source)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("gn_det-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    shipped = {f"gn_det/{path.relative_to(REPO)}" for path in (REPO / "configs").rglob("*.yaml")}
    assert {name for name in names if name.endswith(".yaml")} == shipped
    assert not any(name.startswith(("tests", "tools", "configs")) for name in names)
    files = {path.relative_to(REPO) for path in (REPO / "gn_det").rglob("*") if path.is_file()}
    assert {str(path) for path in files if "__pycache__" not in path.parts} <= set(names)  # all packages and data files
    assert "Requires-Dist: torch" in metadata and "detectron2" not in re.findall(
        "Requires-Dist: ([a-z0-9_]+)", metadata
    )
    norm = "c.load_config('mmdet_mask_rcnn_R50_FPN_gn_3x').MODEL.FPN.NORM"
    code = f"import gn_det.config as c; print(c.__file__); print({norm})"
    installed = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = python("-c", code, cwd=tmp_path, env=installed)
    assert done.stdout.split() == [str(tmp_path / "installed/gn_det/config/__init__.py"), "GN"], done.stderr


@pytest.mark.skipif(not BRIDGED, reason="a real detectron2 is installed")
def test_bridged_modules_are_the_same_under_both_names():
    for name in ("layers", "modeling.backbone.resnet", "utils.comm", "data.datasets"):
        bridged, real = (
            importlib.import_module(f"detectron2.{name}"),
            importlib.import_module(f"LabGym.detectron2.{name}"),
        )
        assert bridged is real and bridged.__spec__.name == f"LabGym.detectron2.{name}"
    with pytest.raises(ModuleNotFoundError, match="detectron2.nothing"):
        importlib.import_module("detectron2.nothing")


@pytest.mark.skipif(not BRIDGED, reason="a real detectron2 is installed")
def test_bridged_loggers_are_children_of_the_detectron2_logger():
    assert logging.getLogger("LabGym.detectron2.data").parent.parent is logging.getLogger("detectron2")


def test_demo_command_runs(tmp_path):
    """Run the command of 'make demo', cut down to a step on a few generated images."""
    printed = subprocess.run(["make", "-n", "demo"], cwd=REPO, capture_output=True, text=True).stdout
    line = next(line for line in printed.replace("\\\n", " ").splitlines() if "train_net.py" in line)
    executable, *words = shlex.split(line.replace("$(date +%Y%m%d-%H%M%S)", "now"))
    assert Path(executable).name == "python"
    done = in_a_fork(run_command, [*words, "OUTPUT_DIR", str(tmp_path / "out")], tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "box AP" in done.stdout and str(tmp_path / "out" / "model_final.pth") in done.stdout
    assert (tmp_path / "datasets" / "shapes").is_dir()
