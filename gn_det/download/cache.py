"""Map URLs to files in the download cache, and verify the files against their records."""

import contextlib
import datetime
import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import SplitResult, quote, unquote_to_bytes, urlsplit

from ..errors import GNDetError
from ..files import save_json
from .content import check_content

_LONGEST_NAME, _LONGEST_PATH = 150, 1000  # characters; file systems allow 255 per name, and some 4096 per path


def cache_root() -> Path:
    """Return the cache folder: ``$FVCORE_CACHE/gn_det``, by default ``~/.torch/iopath_cache/gn_det``.

    iopath's own function is not used: if it cannot write to its folder, it falls back to a folder in
    /tmp that anybody can fill.
    """
    return Path(os.path.expanduser(os.environ.get("FVCORE_CACHE") or "~/.torch/iopath_cache")) / "gn_det"


def cache_path(url: str) -> Path:
    """Return the path of a URL's file in the cache, CACHE/gn_det/HOST/PATH. The file need not exist.

    Characters that some file systems do not allow are percent-encoded. ``~`` separates what is not
    part of the URL's path: the port, after the host, unless it is the default port of https; and the
    digest of a query or of a name that is too long, before the suffix.

    Raises:
        GNDetError: the URL is not a valid http or https URL, has no file name, or its path would be
            outside the cache because of ``..`` or a symbolic link.
    """
    root = cache_root()
    path = root.joinpath(*_path_parts(url))
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise GNDetError(
            f"{path} is outside the cache {root} because of a symbolic link: replace the link with what it points to."
        )
    return path


def split_url(url: str) -> SplitResult:
    """Split a URL as ``urllib.parse.urlsplit`` does, but accept only http and https.

    Raises:
        GNDetError: the URL is invalid, has another scheme, or contains a user name or password.
    """
    try:
        parts = urlsplit(url)
        broken = not url.isprintable() or " " in url or parts.port == 0
    except ValueError:
        broken = True
    if broken or parts.scheme not in ("http", "https"):
        raise GNDetError(f"{url!r} is not a valid http or https URL.")
    if "@" in parts.netloc:
        raise GNDetError(f"The URL for {parts.hostname} contains a user name: put it and the password in ~/.netrc.")
    return parts


def _path_parts(url: str) -> list[str]:
    """Return the names of the folders and of the file of a URL, relative to the cache."""
    parts = split_url(url)
    host = parts.hostname or ""
    try:
        *folders, name = (_encode_name(part) for part in (host, *parts.path.split("/")[1:]))
    except ValueError:
        raise GNDetError(
            f"{url!r} cannot be cached: its path has an empty name, '.', '..', a backslash or a control character."
        ) from None
    if not folders:
        raise GNDetError(f"{url!r} has no file name.")
    names = [*map(_shorten, folders), _shorten(name, parts.query)]
    if (parts.scheme, parts.port or 443) != ("https", 443):
        names[0] += f"~{parts.port or 80}"
    if len("/".join(names)) > _LONGEST_PATH:
        raise GNDetError(f"The URL {url[:100]!r}... is too long.")
    return names


def _encode_name(part: str) -> str:
    """Encode one part of a URL's path as an ASCII name that every file system allows.

    Parts with different bytes get different names.

    Raises:
        ValueError: the part has an empty name, ``.``, ``..``, a backslash or a control character.
    """
    raw = unquote_to_bytes(part)
    if {*raw.split(b"/")} & {b"", b".", b".."} or any(byte < 32 or byte in b"\\\x7f" for byte in raw):
        raise ValueError
    return quote(raw, safe="+,=@").replace("~", "%7E")


def _shorten(name: str, query: str = "") -> str:
    """Replace the middle of a long name, or of any name with a query, by a digest of name and query."""
    if len(name) <= _LONGEST_NAME and not query:
        return name
    suffix = PurePosixPath(name).suffix
    suffix = suffix if len(suffix) <= 20 else ""
    digest = hashlib.sha256(f"{name}?{query}".encode()).hexdigest()
    return f"{name.removesuffix(suffix)[:100]}~{digest[:16]}{suffix}"


def sidecar_path(path: Path, kind: str) -> Path:
    """Return the path of a file that accompanies a cached file, ``NAME~.KIND``.

    No URL maps to this path, because ``~`` is encoded in the names of URLs.
    """
    return path.with_name(f"{path.name}~.{kind}")


def make_record(path: Path, url: str) -> dict[str, Any]:
    """Measure a file and return its record for :func:`write_record`.

    Returns:
        A dict with

        - "url": ``url``
        - "size": int, in bytes
        - "sha256": str, 64 hex digits
        - "date": str, the current time in UTC, ISO 8601
    """
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"url": url, "size": path.stat().st_size, "sha256": digest, "date": date}


def verify(record: dict[str, Any], name: str, sha256: str, size: int) -> None:
    """Compare the record of a file with the sha256 and size that it should have.

    Args:
        record: as :func:`make_record` returns it.
        name: what the error message calls the file.
        sha256: the digest or its first hex digits, in lower case; "" if unknown.
        size: in bytes; 0 if unknown.

    Raises:
        GNDetError: the digest or the size differs.
    """
    if (size and record["size"] != size) or not record["sha256"].startswith(sha256):
        expected = " and ".join([f"{size} bytes"] * bool(size) + [f"sha256 {sha256[:16]}"] * bool(sha256))
        actual = f"{record['size']} bytes and sha256 {record['sha256'][:16]}"
        raise GNDetError(f"{name} has {actual}, but should have {expected}.")


def read_record(path: Path) -> dict[str, Any]:
    """Return the record of a cached file, or {} if it has none.

    Raises:
        GNDetError: the record is not a valid record as :func:`write_record` writes it.
    """
    record_path = sidecar_path(path, "json")
    try:
        record: dict[str, Any] = json.loads(record_path.read_text())
        if not (type(record["size"]) is int and len(record["sha256"]) == 64 and type(record["date"]) is str):
            raise ValueError
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise GNDetError(
            f"{record_path} is not a valid download record: remove it and {path.name} to download the file again."
        ) from None
    return record


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write the record of a cached file beside it.

    Raises:
        GNDetError: the record cannot be written.
    """
    save_json(sidecar_path(path, "json"), record)


def check_cached(path: Path, url: str, sha256: str, size: int) -> None:
    """Verify a cached file against its record and against the given sha256 and size.

    A file that does not match is not replaced silently: its owner should know that it was changed or
    put there by hand. A file without a record was put there by hand; its content is checked, and it
    is recorded if the cache is writable.

    Args:
        sha256: the digest or its first hex digits, in lower case; "" if unknown.
        size: in bytes; 0 if unknown.

    Raises:
        GNDetError: the file does not match, is damaged, or has an invalid record.
    """
    record, measured = read_record(path), make_record(path, url)
    try:
        if record:
            verify(measured, f"{path} (recorded on {record['date']})", record["sha256"], record["size"])
        check_content(path, str(path), url)  # also if recorded: an older version may have recorded a file that is cut
        verify(measured, str(path), sha256, size)
    except GNDetError as error:
        raise GNDetError(f"{error} Remove the file to download it again.") from None
    if not record:
        with contextlib.suppress(GNDetError):
            write_record(path, measured)
