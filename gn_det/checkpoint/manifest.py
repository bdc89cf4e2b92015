"""Read and write ``checkpoints.json``, the manifest with the size and the digest of each checkpoint of a run.

A checkpoint is listed after it is complete on disk, so an entry is the mark that its saving succeeded.
"""

import dataclasses
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from ..files import save_json

logger = logging.getLogger(__name__)

MANIFEST = "checkpoints.json"


@dataclass(frozen=True)
class Entry:
    """What is known of a checkpoint from the time when it was written.

    Attributes:
        bytes: size of the file.
        sha256: digest of the file, in hexadecimal.
        iteration: index of the last trained iteration, from 0; -1 if it is unknown.
    """

    bytes: int
    sha256: str
    iteration: int


def read_manifest(folder: str | Path) -> dict[str, Entry]:
    """Read the manifest of a run.

    Returns:
        {file name: entry}, in the order in which the files were written. Empty if there is no
        manifest, and, with a warning, if it cannot be read.
    """
    path = Path(folder, MANIFEST)
    try:
        return {str(name): Entry(**entry) for name, entry in json.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        logger.warning(f"{path} cannot be read ({error}): the checkpoints are checked without their digests.")
        return {}


def write_manifest(folder: str | Path, entries: dict[str, Entry]) -> None:
    """Write the manifest of a run atomically. Entries of files that no longer exist are dropped.

    Raises:
        GNDetError: the file cannot be written.
    """
    there = {name: dataclasses.asdict(entry) for name, entry in entries.items() if Path(folder, name).is_file()}
    save_json(Path(folder, MANIFEST), there)


def agrees(path: Path, entry: Entry) -> bool:
    """Return whether a file has the size and the digest of its entry."""
    if path.stat().st_size != entry.bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
