"""Run functions in forks of a server: a process that has imported gn_det, and has done nothing else.

A fork starts in no time, while a new process imports PyTorch and detectron2 for seconds. Forks of the process that runs
the tests would not do: earlier tests may have used libraries that do not work in a fork of their process, such as hotcoco.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from .paths import TOOLS

_server = multiprocessing.get_context("forkserver")  # started by the first fork
_server.set_forkserver_preload(["gn_det.cli.train", "gn_det.cli.norms", "gn_det.report", "gn_det.drawing.instances"])


def in_a_fork(function: Callable[..., object], *arguments: object) -> subprocess.CompletedProcess:
    """Call a function in a process of its own, without GPUs and with one thread; return exit code and output."""
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        process = _server.Process(target=_call, args=(stdout, stderr, environment, function, arguments))
        process.start()
        process.join()
        printed = [file.read_text() if file.exists() else "" for file in (stdout, stderr)]
    return subprocess.CompletedProcess(function.__name__, process.exitcode, *printed)


def _call(
    stdout: Path, stderr: Path, environment: dict[str, str], function: Callable[..., object], arguments: tuple
) -> None:
    for number, path in ((1, stdout), (2, stderr)):
        with path.open("w") as file:
            os.dup2(file.fileno(), number)  # also what libraries and child processes print
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*arguments)


def fork_tool(*arguments: object, tool: str = "train_net.py") -> subprocess.CompletedProcess:
    """Same as ``helpers.tools.run_tool``, in a fork."""
    return in_a_fork(_run_file, str(TOOLS / tool), list(map(str, arguments)))


def _run_file(path: str, arguments: list[str]) -> None:
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")
