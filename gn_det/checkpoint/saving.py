"""Save checkpoints so that a crash or a full disk at any moment leaves the older ones as they are."""

import contextlib
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch

from ..errors import GNDetError
from ..files import replacing, save_text
from .finite import not_finite, tensors_in
from .manifest import MANIFEST, Entry, read_manifest, write_manifest

logger = logging.getLogger(__name__)

BEST_FILE = "model_best.pth"
FINAL_FILE = "model_final.pth"
LAST_FILE = "last_checkpoint"
#: The names of checkpoints that are saved every ``SOLVER.CHECKPOINT_PERIOD`` iterations; the number is
#: the index of the iteration.
PERIODIC = re.compile(r"model_(\d{7,})\.pth")
_ROOM = 2**20  # bytes that a file needs in addition to its tensors
_MEGABYTE = 10**6


def save_checkpoint(path: Path, data: Mapping[str, Any]) -> None:
    """Write a checkpoint and its entry in the manifest.

    Args:
        path: the file, which is replaced if it exists.
        data: the parts of the checkpoint. "iteration" is the index of the last trained iteration.

    Raises:
        GNDetError: a tensor contains NaN or infinity, or the file cannot be written. The older
            checkpoints, also a file of this name, are unchanged then.
    """
    hint = _hint(path.parent)
    if bad := not_finite(data):
        raise GNDetError(
            f"{path} is not written, because the training has diverged: {len(bad)} tensors contain NaN or infinity (for "
            f"example {bad[0]}){hint or '; lower SOLVER.BASE_LR'}."
        )
    remove_leftovers(path.parent)
    _check_room(path, data, hint)
    entries = read_manifest(path.parent)
    with replacing(path, hint=hint) as part:
        with part.open("wb") as file:
            output = _Digesting(file)
            torch.save(data, cast(IO[bytes], output))
        if entries.pop(path.name, None):
            write_manifest(path.parent, entries)  # the old entry must not describe the new file
    iteration = data.get("iteration", -1)
    entries[path.name] = Entry(output.bytes, output.sha256.hexdigest(), iteration if isinstance(iteration, int) else -1)
    write_manifest(path.parent, entries)


class _Digesting:
    """A file that computes the sha256 and the number of the bytes that are written to it."""

    def __init__(self, file: IO[bytes]):
        self._file, self.sha256, self.bytes = file, hashlib.sha256(), 0

    def write(self, content: bytes | memoryview) -> int:
        self.sha256.update(content)
        self.bytes += len(content)
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()


def _hint(folder: Path) -> str:
    """Return what to do after a failed save, for the end of the error sentence."""
    names = [name for name in read_manifest(folder) if name != BEST_FILE and Path(folder, name).is_file()]
    return f"; the last good checkpoint is {names[-1]}, and --resume goes on from it" if names else ""


def _check_room(path: Path, data: object, hint: str) -> None:
    storages = {s.data_ptr(): s.nbytes() for s in (value.untyped_storage() for _, value in tensors_in(data))}
    needed = sum(storages.values()) + _ROOM
    with contextlib.suppress(OSError):  # replacing() raises the error
        free = shutil.disk_usage(path.parent).free
        if free < needed:
            raise GNDetError(
                f"{path} is not written, because it needs {needed / _MEGABYTE:.0f} MB and its disk has "
                f"{free / _MEGABYTE:.0f} MB left: free some space{hint}."
            )


def save_last(folder: str | Path, name: str) -> None:
    """Write the name of a checkpoint to ``last_checkpoint`` atomically.

    Raises:
        GNDetError: the file cannot be written.
    """
    path = Path(folder, LAST_FILE)
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(OSError):  # save_text() raises the error
            path.rename(path.with_name(f"{LAST_FILE}.folder"))
    save_text(path, name)


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files of saves that were killed.

    Only the process that trains in the folder may call it.
    """
    for path in _leftovers(Path(folder)):
        with contextlib.suppress(OSError):
            path.unlink()
            logger.info(f"Removed {path}, which a killed run has left.")


def _leftovers(folder: Path) -> Iterator[Path]:
    for start in ("model_", MANIFEST, LAST_FILE):
        yield from folder.glob(f".{start}*.part")  # as gn_det.files.replacing() names them


def remove_old(folder: str | Path, keep: int) -> None:
    """Remove all periodic checkpoints except the ``keep`` that were written last; 0 keeps all.

    The file that ``last_checkpoint`` names is never removed.

    Raises:
        GNDetError: the manifest cannot be written.
    """
    entries = read_manifest(folder)
    names = sorted(name for name in os.listdir(folder) if PERIODIC.fullmatch(name) and name not in entries)
    names += [name for name in entries if PERIODIC.fullmatch(name)]
    old = names[:-keep] if keep else []
    if not old:
        return
    last = Path(folder, LAST_FILE).read_text(encoding="utf-8").strip()
    for name in old:
        if name != last:
            Path(folder, name).unlink(missing_ok=True)
    write_manifest(folder, entries)
