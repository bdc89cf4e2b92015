"""Atomic writing: a reader sees the old file or the new one, never a part of it."""

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from .errors import GNDetError


@contextlib.contextmanager
def replacing(path: str | Path, name: str = "", hint: str = "") -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; on success, flush it to disk and rename it to ``path``.

    The new file has the permissions of the file that it replaces, or those of any new file. After an error the temporary
    file is deleted and ``path`` is unchanged. Processes and threads may replace the same file at once: the last one wins.

    Args:
        name: what the error calls the file, as "The report report.html"; by default the path.
        hint: what to do about the error, for the end of its sentence.

    Raises:
        GNDetError: the file cannot be written there.
    """
    path = Path(path)
    part = path.with_name(f".{path.name[:40]}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        part.touch()
        mode = (path if path.exists() else part).stat().st_mode & 0o777
        yield part
        part.chmod(mode)  # safetensors creates files that only their owner can read
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)
    except GNDetError:
        raise
    except Exception as error:
        if not _is_from_writing(error):
            raise
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise GNDetError(f"{name or path} cannot be written: {reason}{hint}.") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _is_from_writing(error: Exception) -> bool:
    """PyTorch and safetensors raise exceptions of their own for a full disk."""
    return isinstance(error, OSError | RuntimeError) or type(error).__name__ == "SafetensorError"


def _sync_folder(folder: Path) -> None:
    """Flush the rename to disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save_text(path: str | Path, text: str, name: str = "", errors: str = "strict") -> Path:
    """Write a text file atomically, in UTF-8. Missing folders are created.

    Args:
        name: as :func:`replacing` takes it.
        errors: what becomes of characters that UTF-8 does not have, as ``str.encode`` takes it.

    Raises:
        GNDetError: as :func:`replacing`.
    """
    path = Path(path)
    with contextlib.suppress(OSError):  # replacing() reports it
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, name) as part:
        part.write_text(text, encoding="utf-8", errors=errors)
    return path


def save_json(path: str | Path, data: object, indent: int | None = 1) -> Path:
    """Write a JSON file atomically. Missing folders are created.

    Raises:
        GNDetError: as :func:`replacing`.
    """
    return save_text(path, json.dumps(data, indent=indent) + "\n")
