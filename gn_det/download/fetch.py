"""A URL -> its local file, downloaded once and held against what is known of it at each use."""

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
from .cache import beside, cache_path, cache_root, check_cached, compare, measure, read_record, split_url, write_record
from .content import check_content
from .transfer import NotDownloaded, download, drop, need_room, say

logger = logging.getLogger(__name__)
_PATIENCE = 1.0  # seconds of waiting for another process before that is said


def fetch(url: str, *, sha256: str = "", size: int = 0) -> Path:
    """The local, verified file of a URL, downloaded where it is not in the cache yet.

    ``$GN_DET_MIRROR``, a folder or a URL that is laid out as the cache is, is asked in place of the URL's own server.
    With ``$GN_DET_OFFLINE`` no server is. Of several processes one downloads, and the others wait for it.

    Args:
        url: of http or https, and then over https only; without a password.
        sha256: the digest or its first hex digits (published file names carry 6 to 8), "" where none is published.
            The first digest that was seen is then recorded beside the file, and holds from there on.
        size: bytes, 0 where it is unknown.

    Raises:
        GNDetError: the file is not here and cannot be had, or is not what it should be; that one is not kept.
    """
    if not re.fullmatch("[0-9a-f]{0,64}", sha256.lower()):
        raise GNDetError(f"{sha256!r} is not a sha256 or its first hex digits.")
    path, sha256 = cache_path(url), sha256.lower()
    try:
        with contextlib.nullcontext() if path.is_file() else _lock(path, url):
            if path.is_file():
                check_cached(path, url, sha256, size)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                _bring(url, path, sha256, size)
    except OSError as error:
        reason = f"{error.strerror or error}" + f" ({error.filename})" * bool(error.filename)
        raise GNDetError(f"{path} cannot be kept or read: {reason}. $FVCORE_CACHE names the cache folder.") from error
    return path


@contextlib.contextmanager
def _lock(path: Path, url: str) -> Iterator[None]:
    """For one process at a time. A process that is killed lets go of it; its empty file stays."""
    name = hashlib.sha256(str(path.relative_to(cache_root())).encode()).hexdigest()
    place = cache_root() / ".locks" / f"{name[:32]}.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        say(f"Waiting for another process, which fetches {url} to {path} ...")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _bring(url: str, path: Path, sha256: str, size: int) -> None:
    """Put a file into the cache: under another name first, which what is refused never leaves."""
    part, record = beside(path, "part"), read_record(path)
    try:
        source = _fill(url, path, part, size)
        check_content(part, source, url)
        found = measure(part, url)
        compare(found, source, sha256, size)
        if record and not sha256:
            name = f"{source} was changed after {record['date']} (if rightly, remove {beside(path, 'json')}): it"
            compare(found, name, record["sha256"], record["size"])
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        write_record(path, found)
        os.replace(part, path)
    except NotDownloaded as failure:
        raise GNDetError(f"{url} was not downloaded: {failure}. {_by_hand(path)}") from failure
    except (GNDetError, OSError):
        drop(part)
        raise
    drop(part)
    logger.info(f"Fetched {source} to {path}: {found['size']} bytes, sha256 {found['sha256']}.")


def _fill(url: str, path: Path, part: Path, size: int) -> str:
    """The mirror's copy of a URL, or its own, to ``part``; where it came from."""
    mirror, place = os.environ.get("GN_DET_MIRROR", ""), path.relative_to(cache_root()).as_posix()
    if mirror and "://" not in mirror:
        file = Path(os.path.expanduser(mirror)) / place
        if not file.is_file():
            raise NotDownloaded(f"the mirror {mirror} has no {place}")
        need_room(part.parent, file.stat().st_size)
        drop(part)
        shutil.copyfile(file, part)
        return str(file)
    if os.environ.get("GN_DET_OFFLINE", "").lower() not in ("", "0", "false", "no", "off"):
        raise NotDownloaded("$GN_DET_OFFLINE is set")
    source = f"{mirror.rstrip('/')}/{quote(place)}" if mirror else url
    try:
        split_url(source)
    except GNDetError as error:
        raise GNDetError(f"$GN_DET_MIRROR is neither a folder nor a web address: {error}") from None
    download(source, part, size)
    return source


def _by_hand(path: Path) -> str:
    place = path.relative_to(cache_root()).as_posix()
    if mirror := os.environ.get("GN_DET_MIRROR"):
        return f"Put it at {path}, or into the mirror {mirror}; while $GN_DET_MIRROR is set, nothing else is asked."
    return f"Put it at {path} by hand, or set $GN_DET_MIRROR to a folder or a URL that has {place}."
