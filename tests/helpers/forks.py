"""Run functions in forks of a server: a process that has imported gn_det, and has done nothing else.

A fork starts in no time, while a new process imports PyTorch and detectron2 for seconds. Forks of the process that runs
the tests would not do: earlier tests may have used libraries that do not work in a fork of their process, such as hotcoco.
"""

import contextlib
import math
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from .paths import TOOLS

_server = multiprocessing.get_context("forkserver")  # started by the first fork
_server.set_forkserver_preload(["gn_det.cli.train", "gn_det.cli.norms", "gn_det.report", "gn_det.drawing.instances"])
_lock = threading.Lock()  # multiprocessing polls all its processes when it starts one, whichever thread waits for them


class Fork:
    """A running fork: the leader of a process group of its own, without GPUs and with one thread."""

    def __init__(
        self, function: Callable[..., object], *arguments: object, environment: Mapping[str, str] | None = None
    ):
        """
        Args:
            function: called with the arguments in the fork.
            environment: added to the environment of this process.
        """
        self._name = function.__name__
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        everything = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **(environment or {})}
        self._process = _server.Process(target=_call, args=(*self._files, everything, function, arguments))
        with _lock:
            self._process.start()

    @property
    def pid(self) -> int:
        """Process id, which is also the id of the process group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the fork has not ended yet."""
        return self._exit_code() is None

    def send(self, number: int) -> None:
        """Send a signal to the fork, and not to the processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def output(self) -> list[str]:
        """What has been printed so far to stdout and stderr."""
        return [file.read_text(errors="replace") if file.exists() else "" for file in self._files]

    def wait(self, timeout: float | None = None) -> subprocess.CompletedProcess:
        """Return exit code and output.

        The exit code is None if the fork still runs after ``timeout`` seconds. The process group is killed then.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        try:
            while (code := self._exit_code()) is None and time.monotonic() < end:
                time.sleep(0.01)
        finally:
            if self.running:  # the time is over, or Ctrl-C
                self.kill_group()
        printed = self.output()
        self._folder.cleanup()
        return subprocess.CompletedProcess(self._name, code, *printed)

    def _exit_code(self) -> int | None:
        with _lock:
            return self._process.exitcode

    def kill_group(self) -> None:
        """Kill the fork and all processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def in_a_fork(function: Callable[..., object], *arguments: object) -> subprocess.CompletedProcess:
    """Call a function in a fork; return exit code and output."""
    return Fork(function, *arguments).wait()


def _call(
    stdout: Path, stderr: Path, environment: dict[str, str], function: Callable[..., object], arguments: tuple
) -> None:
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # Python's default instead of "forkserver", for data workers
    for number, path in ((1, stdout), (2, stderr)):
        with path.open("w") as file:
            os.dup2(file.fileno(), number)  # also what libraries and child processes print
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*arguments)


def fork_tool(*arguments: object, tool: str = "train_net.py") -> subprocess.CompletedProcess:
    """Same as ``helpers.tools.run_tool``, in a fork."""
    return in_a_fork(run_file, str(TOOLS / tool), list(map(str, arguments)))


def run_file(path: str, arguments: list[str]) -> None:
    """Run a Python file as the main program."""
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")
