"""Return the local file of a URL: download it once, and verify it at each use."""

import contextlib
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout

from ..errors import GNDetError
from .cache import (
    cache_path,
    cache_root,
    check_cached,
    make_record,
    read_record,
    sidecar_path,
    split_url,
    verify,
    write_record,
)
from .content import check_content
from .transfer import DownloadFailed, download, print_status, remove_partial, require_free_space

logger = logging.getLogger(__name__)
_SILENT_WAIT = 1.0  # seconds to wait for another process before a message is printed


def fetch(url: str, *, sha256: str = "", size: int = 0) -> Path:
    """Return the local, verified file of a URL. Download it if it is not in the cache yet.

    If ``$GN_DET_MIRROR`` is set, it is used instead of the URL's own server. It is a folder or a URL
    with the same layout as the cache. If ``$GN_DET_OFFLINE`` is set, no server is contacted. If
    several processes request the same URL, one downloads it and the others wait.

    Args:
        url: an http or https URL without user name and password. Redirects from https to http are
            refused.
        sha256: the hex digest of the file or its first digits (published file names contain 6 to 8);
            "" if none is published. In that case the digest of the first download is recorded beside
            the file, and later downloads must have the same digest.
        size: the size of the file in bytes; 0 if it is unknown.

    Raises:
        GNDetError: the file is not in the cache and cannot be downloaded, or it does not match
            ``sha256`` or ``size``. A download that does not match is deleted.
    """
    if not re.fullmatch("[0-9a-f]{0,64}", sha256.lower()):
        raise GNDetError(f"{sha256!r} is not a sha256 digest or the first hex digits of one.")
    path, sha256 = cache_path(url), sha256.lower()
    try:
        with contextlib.nullcontext() if path.is_file() else _lock(path, url):
            if path.is_file():
                check_cached(path, url, sha256, size)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                _add_to_cache(url, path, sha256, size)
    except OSError as error:
        reason = f"{error.strerror or error}" + f" ({error.filename})" * bool(error.filename)
        raise GNDetError(
            f"{path} cannot be read or written: {reason}; set $FVCORE_CACHE to use another cache folder."
        ) from error
    return path


@contextlib.contextmanager
def _lock(path: Path, url: str) -> Iterator[None]:
    """Let one process at a time fetch a file. A killed process releases its lock; the empty lock file stays."""
    name = hashlib.sha256(str(path.relative_to(cache_root())).encode()).hexdigest()
    lock_path = cache_root() / ".locks" / f"{name[:32]}.lock"
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_path)
    try:
        lock.acquire(timeout=_SILENT_WAIT)
    except Timeout:
        print_status(f"Waiting for another process that is downloading {url} to {path} ...")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _add_to_cache(url: str, path: Path, sha256: str, size: int) -> None:
    """Get a file under a temporary name, verify it, record it, and rename it to ``path``."""
    part, record = sidecar_path(path, "part"), read_record(path)
    try:
        source = _copy_or_download(url, path, part, size)
        check_content(part, source, url)
        measured = make_record(part, url)
        verify(measured, source, sha256, size)
        if record and not sha256:
            hint = f"if you trust the new file, remove {sidecar_path(path, 'json')}"
            name = f"{source} has changed since {record['date']} ({hint}): it"
            verify(measured, name, record["sha256"], record["size"])
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        write_record(path, measured)
        os.replace(part, path)
    except DownloadFailed as failure:
        raise GNDetError(f"{url} could not be downloaded: {failure}. {_manual_hint(path)}") from failure
    except (GNDetError, OSError):
        remove_partial(part)
        raise
    remove_partial(part)
    logger.info(f"Fetched {source} to {path}: {measured['size']} bytes, sha256 {measured['sha256']}.")


def _copy_or_download(url: str, path: Path, part: Path, size: int) -> str:
    """Write the file of a URL to ``part``, from the mirror if one is set. Return its source, a path or URL."""
    mirror, relative_path = os.environ.get("GN_DET_MIRROR", ""), path.relative_to(cache_root()).as_posix()
    if mirror and "://" not in mirror:
        file = Path(os.path.expanduser(mirror)) / relative_path
        if not file.is_file():
            raise DownloadFailed(f"the mirror {mirror} has no {relative_path}")
        require_free_space(part.parent, file.stat().st_size)
        remove_partial(part)
        shutil.copyfile(file, part)
        return str(file)
    if os.environ.get("GN_DET_OFFLINE", "").lower() not in ("", "0", "false", "no", "off"):
        raise DownloadFailed("$GN_DET_OFFLINE is set")
    source = f"{mirror.rstrip('/')}/{quote(relative_path)}" if mirror else url
    try:
        split_url(source)
    except GNDetError as error:
        raise GNDetError(f"$GN_DET_MIRROR is neither a folder nor a valid URL: {error}") from None
    download(source, part, size)
    return source


def _manual_hint(path: Path) -> str:
    """Return a sentence on how to provide a file that could not be downloaded."""
    relative_path = path.relative_to(cache_root()).as_posix()
    if mirror := os.environ.get("GN_DET_MIRROR"):
        return f"Put the file at {path} or in the mirror {mirror}; while $GN_DET_MIRROR is set, nothing else is tried."
    return f"Put the file at {path} by hand, or set $GN_DET_MIRROR to a folder or URL that has {relative_path}."
