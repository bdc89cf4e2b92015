"""Where a downloaded file lies, and what is known of it."""

import contextlib
import datetime
import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from urllib.parse import SplitResult, quote, unquote_to_bytes, urlsplit

from ..errors import GNDetError
from ..files import save_json
from .content import check_content

_LONGEST_NAME, _LONGEST_PATH = 150, 1000  # characters; file systems take 255 a name, and some 4096 in all


def cache_root() -> Path:
    """``$FVCORE_CACHE/gn_det``; without the variable, iopath's default folder.

    Not through iopath's function: where that cannot write, it takes a folder in /tmp that anybody can fill.
    """
    return Path(os.path.expanduser(os.environ.get("FVCORE_CACHE") or "~/.torch/iopath_cache")) / "gn_det"


def cache_path(url: str) -> Path:
    """The file of a URL in the cache, whether it is there or has to be put there by hand: CACHE/gn_det/HOST/PATH.

    Names are percent-encoded where file systems differ. ``~`` marks what is not in the path: the port of a host where
    it is not https's, and the digest of a query or of a name that is too long, before the suffix.

    Raises:
        GNDetError: it is no URL of http or https, names no file, or a link or the URL itself leads out of the cache.
    """
    root = cache_root()
    path = root.joinpath(*_names(url))
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise GNDetError(f"{path} leads out of the cache {root} by a link: put the file itself there.")
    return path


def split_url(url: str) -> SplitResult:
    """
    Raises:
        GNDetError: it is no URL of http or https, or has a password in it.
    """
    try:
        parts = urlsplit(url)
        broken = not url.isprintable() or " " in url or parts.port == 0
    except ValueError:
        broken = True
    if broken or parts.scheme not in ("http", "https"):
        raise GNDetError(f"{url!r} is not a URL of http or https.")
    if "@" in parts.netloc:
        raise GNDetError(f"The URL for {parts.hostname} has a user name in it: keep that and the password in ~/.netrc.")
    return parts


def _names(url: str) -> list[str]:
    """The host and the path of a URL as names of folders and of a file."""
    parts = split_url(url)
    host = parts.hostname or ""
    try:
        *folders, name = (_name(part) for part in (host, *parts.path.split("/")[1:]))
    except ValueError:
        raise GNDetError(f"{url!r} leads out of its folder, or has empty or unprintable names in it.") from None
    if not folders:
        raise GNDetError(f"{url!r} names no file.")
    names = [*map(_short, folders), _short(name, parts.query)]
    if (parts.scheme, parts.port or 443) != ("https", 443):
        names[0] += f"~{parts.port or 80}"
    if len("/".join(names)) > _LONGEST_PATH:
        raise GNDetError(f"The URL {url[:100]!r}... is too long.")
    return names


def _name(part: str) -> str:
    """One name of a URL's path as one of ASCII, which a file can have anywhere; other bytes give another."""
    raw = unquote_to_bytes(part)
    if {*raw.split(b"/")} & {b"", b".", b".."} or any(byte < 32 or byte in b"\\\x7f" for byte in raw):
        raise ValueError
    return quote(raw, safe="+,=@").replace("~", "%7E")


def _short(name: str, query: str = "") -> str:
    """The name, or its beginning and suffix with a digest of all between them."""
    if len(name) <= _LONGEST_NAME and not query:
        return name
    suffix = PurePosixPath(name).suffix
    suffix = suffix if len(suffix) <= 20 else ""
    digest = hashlib.sha256(f"{name}?{query}".encode()).hexdigest()
    return f"{name.removesuffix(suffix)[:100]}~{digest[:16]}{suffix}"


def beside(path: Path, kind: str) -> Path:
    """A file that belongs to one in the cache. No URL has this name, as ``~`` is none of theirs."""
    return path.with_name(f"{path.name}~.{kind}")


def measure(path: Path, url: str) -> dict:
    """What to remember of a file.

    Returns:
        {"url", "size" in bytes, "sha256", "date"}.
    """
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"url": url, "size": path.stat().st_size, "sha256": digest, "date": date}


def compare(found: dict, name: str, sha256: str, size: int) -> None:
    """Hold what was measured of a file against what is known of it: the first digits of its digest or "", bytes or 0.

    Raises:
        GNDetError: they differ.
    """
    if (size and found["size"] != size) or not found["sha256"].startswith(sha256):
        known = " and ".join([f"{size} bytes"] * bool(size) + [f"sha256 {sha256[:16]}"] * bool(sha256))
        has = f"{found['size']} bytes and sha256 {found['sha256'][:16]}"
        raise GNDetError(f"{name} has {has}, but should have {known}.")


def read_record(path: Path) -> dict:
    """What was remembered of a file in the cache, or {}.

    Raises:
        GNDetError: it is not what :func:`write_record` writes.
    """
    place = beside(path, "json")
    try:
        record = json.loads(place.read_text())
        if not (type(record["size"]) is int and len(record["sha256"]) == 64 and type(record["date"]) is str):
            raise ValueError
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise GNDetError(f"{place} is no record of a download: remove it and {path.name}, to have both anew.") from None
    return record


def write_record(path: Path, record: dict) -> None:
    """Write the record of a download beside it.

    Raises:
        GNDetError: it cannot be written there.
    """
    save_json(beside(path, "json"), record)


def check_cached(path: Path, url: str, sha256: str, size: int) -> None:
    """Refuse a file in the cache that is not what was recorded or is known of it.

    It is not replaced in silence: either something changed it, or somebody put it there, and its owner should know. One
    that was put there by hand is recorded now, if that can be written.

    Raises:
        GNDetError
    """
    record, found = read_record(path), measure(path, url)
    try:
        if record:
            compare(found, f"{path}, recorded on {record['date']},", record["sha256"], record["size"])
        else:
            check_content(path, str(path), url)
        compare(found, str(path), sha256, size)
    except GNDetError as error:
        raise GNDetError(f"{error} Remove the file to have it downloaded again.") from None
    if not record:
        with contextlib.suppress(GNDetError):
            write_record(path, found)
