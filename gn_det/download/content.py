"""What a file is by its bytes: weights, or the page that a server sent in their place."""

import zipfile
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import GNDetError

_BRACKETS = {b"{": b"}", b"[": b"]"}
_LARGEST_HEADER = 100_000_000  # bytes, safetensors' own limit
_PICKLES = (b"\x80", b"(d", b"}q", b"ccollections\n")  # protocol 2 and later; a dict in 0 and 1; OrderedDict in both
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # before 1.6: several pickles, and then the numbers


def check_start(path: Path, name: str, url: str) -> None:
    """Refuse what is no weights file, and no JSON where the URL asks for that, by its first bytes.

    Raises:
        GNDetError
    """
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        raise GNDetError(f"{name} is empty.")
    asked = ("JSON",) if urlsplit(url).path.lower().endswith(".json") else ("zip", "pickle", "safetensors")
    kind = _kind(head)
    if kind not in asked:
        what = "JSON" if asked == ("JSON",) else "weights (zip, pickle or safetensors)"
        raise GNDetError(f"{name} is {kind or 'something else'} and not {what}: it begins with {head[:40]!r}.")


def check_content(path: Path, name: str, url: str) -> None:
    """:func:`check_start`, and that the end is there, as far as the format tells.

    Raises:
        GNDetError
    """
    check_start(path, name, url)
    if not _has_end(path):
        raise GNDetError(f"{name} is not whole: it breaks off after {path.stat().st_size} bytes.")


def _kind(head: bytes) -> str:
    """First of all safetensors: the length that it begins with may be any letter."""
    if head[8:9] == b"{" and _header_length(head) <= _LARGEST_HEADER:
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(_PICKLES):
        return "pickle"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<"):
        return "a web page"
    return "JSON" if text[:1] in _BRACKETS else ""


def _header_length(head: bytes) -> int:
    return int.from_bytes(head[:8], "little")


def _has_end(path: Path) -> bool:
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(64)
        file.seek(max(0, size - 64))
        tail = file.read().rstrip()
    kind = _kind(head)
    if kind == "zip":
        return zipfile.is_zipfile(path)
    if kind == "pickle":
        return tail.endswith(b".") or head.startswith(_OLD_TORCH)
    if kind == "safetensors":
        return size >= 8 + _header_length(head)
    return tail.endswith(_BRACKETS[head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]])
