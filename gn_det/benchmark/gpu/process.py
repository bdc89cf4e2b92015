"""Start the process of a candidate, send it commands, and end it if it does not answer in time."""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

_WORKER = [sys.executable, "-m", "gn_det.benchmark.gpu.worker"]
_STACK_SECONDS = 2.0  # to wait for the stack of a process that does not answer


class Process:
    """The process of a candidate.

    Attributes:
        failure: why the process has ended, or None while it runs.
        warnings: sentences that gn_det has logged as warnings in it.

    Args:
        job: see :mod:`gn_det.benchmark.gpu.worker`.
        environment: environment variables in addition to those of this process.
        folder: for caches of compiled code, which have to be empty.
        log: file for all that the process prints.
    """

    def __init__(self, job: dict, environment: Mapping[str, str], folder: Path, log: Path):
        self.failure: str | None = None
        self.warnings: list[str] = []
        self._log, self._closed = log, False
        self._replies: queue.Queue[dict | None] = queue.Queue()
        caches = {"TRITON_CACHE_DIR": str(folder / "triton"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
        root = str(Path(__file__).resolve().parents[3])
        path = {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                _WORKER,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=os.environ | caches | path | dict(environment),
                start_new_session=True,  # so that close() also ends the processes that it starts
            )
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()
        self._send(job)

    def wait_until_ready(self, timeout: float) -> None:
        """Wait for the process to accept commands; sets ``failure`` if it does not within ``timeout`` seconds."""
        self._receive(timeout, f"did not start within {timeout:.0f} s")

    def call(self, timeout: float, do: str, **arguments: Any) -> tuple[Any, str | None]:
        """Run a command in the process.

        Args:
            timeout: seconds after which the process is ended.
            do: a method of :class:`gn_det.benchmark.gpu.session.Session`.

        Returns:
            (result of the method, None), or (None, why there is no result).
        """
        if self.failure is None:
            self._send({"do": do, **arguments})
            reply = self._receive(timeout, f"did not answer within {timeout:.0f} s")
            if reply is not None:
                return reply.get("result"), reply.get("error")
        return None, self.failure

    def close(self) -> None:
        """End the process, and those that it has started."""
        if not self._closed:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._closed = True

    def _send(self, message: dict) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # _receive reports it
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _read(self, replies: IO[str]) -> None:
        for line in replies:
            self._replies.put(json.loads(line))
        self._replies.put(None)

    def _receive(self, timeout: float, problem: str) -> dict | None:
        try:
            reply = self._replies.get(timeout=max(timeout, 0.0))
        except queue.Empty:
            self.failure = f"{problem}{self._place()}"
            self.close()
            return None
        if reply is None:
            self.close()
            self.failure = f"ended with code {self._process.returncode}: {self._last_line()}"
            return None
        self.warnings = reply["warnings"]
        return reply

    def _place(self) -> str:
        """Return ", in FUNCTION (FILE:LINE)", where a process is that does not answer."""
        size = self._log.stat().st_size
        self._process.send_signal(signal.SIGUSR1)
        end = time.monotonic() + _STACK_SECONDS
        frames: list[tuple[str, str, str]] = []
        while not frames and time.monotonic() < end:
            time.sleep(0.2)
            text = self._log.read_bytes()[size:].decode(errors="replace")
            frames = re.findall(r'File "([^"]+)", line (\d+) in (\S+)', text)
        if not frames:
            return ""
        libraries = (frame for frame in frames if "packages" in frame[0] or "gn_det" in frame[0])
        file, line, function = next(libraries, frames[0])  # rather than Python's own, such as subprocess.py
        return f", in {function} ({'/'.join(Path(file).parts[-3:])}:{line})"

    def _last_line(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:250] if lines else "it printed nothing"
