"""Lock an OUTPUT_DIR, so that two runs do not write into it at the same time."""

import contextlib
import datetime
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from detectron2.utils import comm
from filelock import FileLock, Timeout

from ..errors import GNDetError
from ..files import save_json

logger = logging.getLogger(__name__)

_LOCK, _OWNER = ".gn_det.lock", ".gn_det.owner.json"


@contextlib.contextmanager
def owned(folder: str | Path) -> Iterator[None]:
    """Hold the lock of a run's folder during a ``with`` block. Only the main process of a run holds it.

    The operating system releases the lock when the process ends, however it ends. On NFS, the lock holds
    between machines if the server and both clients support locks, as NFSv4 does. On a file system without
    locks, a warning is logged and the folder is not locked.

    Args:
        folder: an existing folder.

    Raises:
        GNDetError: another run holds the lock.
    """
    if not comm.is_main_process():
        yield
        return
    folder = Path(folder)
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise GNDetError(
            f"OUTPUT_DIR {folder} is in use by another run{_describe_owner(folder)}: wait until it ends, or use another "
            "OUTPUT_DIR."
        ) from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        logger.warning(f"OUTPUT_DIR {folder} cannot be locked ({reason}): start no other run in this folder.")
        yield
        return
    try:
        started = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        save_json(folder / _OWNER, {"host": socket.gethostname(), "pid": os.getpid(), "started": started})
        yield
    finally:
        (folder / _OWNER).unlink(missing_ok=True)
        lock.release()


def _describe_owner(folder: Path) -> str:
    """Return a clause about the process that holds the lock; "" if it is not known."""
    try:
        owner = json.loads((folder / _OWNER).read_text())
        return f" (process {owner['pid']} on {owner['host']}, started {owner['started']})"
    except (OSError, ValueError, TypeError, KeyError):
        return ""
