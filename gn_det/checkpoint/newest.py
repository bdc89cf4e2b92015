"""Choose the newest good checkpoint of a run: the one to resume from, and the one to predict with."""

import logging
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ..config.files import parse_config
from ..errors import GNDetError
from .finite import not_finite
from .load import read_file, read_iteration, read_notes
from .manifest import MANIFEST, Entry, agrees, read_manifest
from .saving import BEST_FILE, FINAL_FILE, LAST_FILE, PERIODIC

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Newest:
    """The newest good checkpoint of a run.

    Attributes:
        path: the file.
        remarks: what is wrong with ``last_checkpoint``, with newer files and with this one, as
            sentences without a period.
    """

    path: Path
    remarks: list[str]

    def log(self) -> None:
        """Log a warning if there are remarks."""
        if self.remarks:
            logger.warning(f"{'; '.join(self.remarks)}. The newest good checkpoint is used: {self.path}.")


def has_checkpoints(folder: str | Path) -> bool:
    """Return whether a folder has checkpoints to resume from, good or bad, or a ``last_checkpoint``."""
    folder = Path(folder)
    return (folder / LAST_FILE).exists() or bool(_names(folder, read_manifest(folder)))


def newest_good(folder: str | Path, *, resumes: bool) -> Newest:
    """Return the newest good checkpoint of a run.

    This is the good file with the most iterations. A file is good if it has the size and the digest
    that the manifest gives. Otherwise it is read, and is good if all checksums in the file are right
    and its tensors are finite. ``model_best.pth`` is used only if ``last_checkpoint`` names it.

    Args:
        folder: the OUTPUT_DIR of the run.
        resumes: whether the file is for resuming. Then the one that ``last_checkpoint`` names comes
            before newer ones, so that a user can go back to an older state.

    Raises:
        GNDetError: the folder has no good checkpoint.
    """
    folder = Path(folder)
    entries = read_manifest(folder)
    last, problem = read_last(folder)
    names = {*_names(folder, entries), *([last] if last else [])}
    order = sorted(names, key=lambda name: _rank(folder / name, entries.get(name)), reverse=True)
    remarks = [problem] if problem and (resumes or not order) else []
    for name in dict.fromkeys([last, *order] if last and resumes else order):
        damage, remark = _examine(folder / name, entries.get(name))
        if damage:
            remarks.append(f"{name} is not used, because {damage}")
            continue
        if resumes and remark:
            remarks.append(f"{name} {remark}")
        if resumes and name == last != order[0]:
            remarks.append(f"{LAST_FILE} names {last}, so {order[0]} is not used, which is newer")
        return Newest(folder / name, remarks)
    raise GNDetError(
        f"{folder} contains no checkpoint that can be used: {'; '.join(remarks)}; put a good one there, or use another "
        "folder."
    )


def seed_of_run(folder: str | Path) -> int:
    """Return the seed of the run that is resumed from a folder; 0 if it is not known."""
    try:
        text = read_notes(str(newest_good(folder, resumes=True).path)).get("config", "")
        return max(0, parse_config(text, "The config in the checkpoint").SEED) if text else 0
    except GNDetError:  # the training says later what is wrong
        return 0


def read_last(folder: str | Path) -> tuple[str, str]:
    """Read which checkpoint ``last_checkpoint`` names.

    Returns:
        the name of a file in the folder, or ""; and what is wrong with ``last_checkpoint``, as a
        sentence without a period, or "".
    """
    path = Path(folder, LAST_FILE)
    try:
        name = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return "", f"{path} is missing"
    except (OSError, UnicodeDecodeError) as error:
        return "", f"{path} cannot be read ({getattr(error, 'strerror', None) or 'it is not text'})"
    if not name.isprintable() or Path(name).name != name or not Path(folder, name).is_file():
        return "", f"{path} does not name a file in its folder"
    return name, ""


def _names(folder: Path, entries: dict[str, Entry]) -> list[str]:
    """Return the names of all checkpoints with the state of a training."""
    files = [path.name for path in folder.glob("*") if path.is_file()]
    return [n for n in files if n != BEST_FILE and (n in entries or n == FINAL_FILE or PERIODIC.fullmatch(n))]


def _rank(path: Path, entry: Entry | None) -> tuple[float, str]:
    """Return what the checkpoints of a run are sorted by: the iteration, and the name if it is equal."""
    iteration: float = entry.iteration if entry else -1
    if iteration < 0 and (named := PERIODIC.fullmatch(path.name)):
        iteration = int(named[1])
    if iteration < 0:
        iteration = read_iteration(str(path))
    return math.inf if iteration < 0 and path.name == FINAL_FILE else iteration, path.name


def _examine(path: Path, entry: Entry | None) -> tuple[str, str]:
    """Return why a checkpoint is not good, as a clause, and a remark on a good one; both can be ""."""
    if entry and agrees(path, entry):
        return "", ""
    try:
        bad = not_finite(read_file(path))
    except GNDetError as error:
        size = path.stat().st_size
        if entry and size < entry.bytes:
            return f"it is cut: it has {size} of {entry.bytes} bytes", ""
        return str(error).partition("could not be read: ")[2].rstrip(".") or str(error), ""
    if bad:
        return f"{len(bad)} tensors contain NaN or infinity (for example {bad[0]})", ""
    if entry and not zipfile.is_zipfile(path):  # without checksums in the file
        return f"its digest differs from that in {MANIFEST}", ""
    return "", f"was changed after it was saved: its digest differs from that in {MANIFEST}" if entry else ""
