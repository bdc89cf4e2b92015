"""Write files atomically: a reader sees the old file or the complete new one. Read JSON of any origin."""

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import GNDetError

_MAX_JSON_DEPTH = 100


@contextlib.contextmanager
def replacing(path: str | Path, name: str = "", hint: str = "") -> Iterator[Path]:
    """Yield a temporary path next to ``path``; on success, flush it to disk and rename it to ``path``.

    The new file gets the permissions of the file that it replaces, or the default permissions. If an
    error occurs, the temporary file is deleted and ``path`` is unchanged. Several processes and threads
    may replace the same file at the same time; the last one wins.

    Args:
        path: the file to write.
        name: the name of the file in the error message, such as "The report report.html". By default
            the path.
        hint: what to do about the error, for the end of the error message.

    Raises:
        GNDetError: the file cannot be written.
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
    except Exception as error:
        if not _is_from_writing(error):
            raise
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise GNDetError(f"{name or path} cannot be written: {reason}{hint}.") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _is_from_writing(error: Exception) -> bool:
    """Return whether an exception comes from writing the file.

    PyTorch and safetensors have their own exceptions for a full disk.
    """
    return isinstance(error, OSError | RuntimeError) or type(error).__name__ == "SafetensorError"


def _sync_folder(folder: Path) -> None:
    """Flush the rename to disk, if the system supports it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save_text(path: str | Path, text: str, name: str = "", errors: str = "strict") -> Path:
    """Write a text file in UTF-8 atomically, and create missing folders.

    Args:
        path: the file to write.
        text: its content.
        name: the name of the file in the error message, by default the path.
        errors: how to encode characters that UTF-8 does not have; see ``str.encode``.

    Returns:
        the path.

    Raises:
        GNDetError: the file cannot be written.
    """
    path = Path(path)
    with contextlib.suppress(OSError):  # replacing() raises the error
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, name) as part:
        part.write_text(text, encoding="utf-8", errors=errors)
    return path


def save_json(path: str | Path, data: object, indent: int | None = 1) -> Path:
    """Write a JSON file atomically, and create missing folders. Returns the path.

    Raises:
        GNDetError: the file cannot be written.
    """
    return save_text(path, json.dumps(data, indent=indent) + "\n")


def read_json(path: str | Path, name: str) -> Any:
    """Return the content of a JSON file in UTF-8.

    Args:
        path: the file.
        name: how the error message calls the file, such as "The record a.json".

    Raises:
        GNDetError: the file cannot be read, is not JSON, or is nested so deeply that code which walks
            through it would fail.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if _is_deeper(data, _MAX_JSON_DEPTH):
            raise RecursionError
    except OSError as error:
        raise GNDetError(f"{name} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # also of text that is not UTF-8
        raise GNDetError(f"{name} cannot be read as JSON: {error}.") from None
    except RecursionError:
        raise GNDetError(f"{name} cannot be read as JSON: it is nested too deeply.") from None
    return data


def _is_deeper(data: object, depth: int) -> bool:
    """Return whether lists and dicts are nested in each other more than ``depth`` times."""
    level: list[Any] = [data] if isinstance(data, list | dict) else []
    while level and depth:
        children = (node.values() if type(node) is dict else node for node in level)
        level = [child for values in children for child in values if type(child) in (dict, list)]
        depth -= 1
    return bool(level)
