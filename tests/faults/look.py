"""Look at the files and processes of a run."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from gn_det.config.defaults import get_cfg
from helpers.configs import flatten
from helpers.forks import Fork

from .frame import check

TIME_LIMIT = 90.0  # seconds for one command


def weights(file: Path, *parts: str) -> str:
    """Return a digest of "model", or of other parts, in a checkpoint."""
    digest = hashlib.sha256()
    checkpoint = torch.load(file, weights_only=True, mmap=True)
    for name in parts or ("model",):
        _update(digest, part(checkpoint, name))
    return digest.hexdigest()


def part(checkpoint: dict, name: str) -> object:
    """Return the value of a key at any depth of a checkpoint; None if there is no such key."""
    if name in checkpoint:
        return checkpoint[name]
    deeper = [part(value, name) for value in checkpoint.values() if isinstance(value, dict)]
    return next((value for value in deeper if value is not None), None)


def _update(digest, value: object) -> None:
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            digest.update(str(key).encode())
            _update(digest, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            _update(digest, item)
    elif isinstance(value, torch.Tensor):
        digest.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    else:
        digest.update(repr(value).encode())


def contents(folder: Path, *left_out: str) -> dict[str, str]:
    """Return the digest of each file in a folder by its relative path.

    Args:
        left_out: names of files that do not count.
    """
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in left_out]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(files)}


def wait_until(condition: Callable[[], object], fork: Fork, timeout: float = TIME_LIMIT) -> None:
    """Wait for a condition while a fork runs.

    Raises:
        Lost: the fork ended before, or the time is over.
    """
    end = time.monotonic() + timeout
    while not condition():
        check(fork.running, "the run ended early: " + "".join(fork.output())[-300:])
        check(time.monotonic() < end, "nothing happened in time")
        time.sleep(0.02)


def steps(file: Path) -> list:
    """Return the lines of :func:`faults.inject.trace_iterations`."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def known_keys() -> set[str]:
    """The config keys of gn_det."""
    return set(flatten(get_cfg()))


def children(pid: int) -> list[int]:
    """Return the processes that a process has forked without another program, such as workers of a DataLoader."""
    found = [int(word) for file in Path(f"/proc/{pid}/task").glob("*/children") for word in file.read_text().split()]
    own = _command(pid)
    return [child for child in found if _command(child) == own]


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def versions(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return (inode, size, time of change) of each checkpoint in a folder, complete or not."""
    found = {}
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):
                if ".pth" in entry.name:
                    stat = entry.stat()
                    found[entry.name] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return found
