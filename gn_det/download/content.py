"""Recognize file types from the first bytes, and refuse downloads that are of another type or cut off."""

import re
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

from safetensors import SafetensorError, safe_open

from ..errors import GNDetError

#: How an error sentence continues after "FILE is", for each result of :func:`file_type`.
DESCRIPTIONS = {
    "safetensors": "a safetensors file",
    "zip": "a zip file",
    "old torch": "a file of PyTorch before 1.6",
    "pickle": "a pickle",
    "web page": "a web page",
    "JSON": "JSON",
    "unknown": "a file of unknown type",
}
#: The file types that can contain weights.
WEIGHTS = ("zip", "old torch", "pickle", "safetensors")

_MAX_SAFETENSORS_HEADER = 100_000_000  # bytes, the limit of the safetensors library
_OLD_TORCH_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"
# Protocol 2 and later begins with \x80. Protocols 0 and 1 begin with an opcode: here an empty dict;
# a class, as "cMODULE\nNAME\n"; or a mark, "(", followed by another opcode. A mere "c" or "(" would
# also match text, such as "cannot find the file" or "(404) not found".
_PICKLE = re.compile(rb"\x80|}|(c|\([ci])[\w.]+\n[\w.]+|\([]()}dltSVUX]")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # of UTF-8
_BRACKETS = {b"{": b"}", b"[": b"]"}


def read_head(path: str | Path) -> bytes:
    """Return the first 64 bytes of a file, which :func:`file_type` takes."""
    with open(path, "rb") as file:
        return file.read(64)


def file_type(head: bytes) -> str:
    """Return the type of a file by its first bytes, whatever its suffix.

    Args:
        head: as :func:`read_head` returns it.

    Returns:
        one of

        - "safetensors"
        - "zip": what PyTorch writes since version 1.6
        - "old torch": what PyTorch wrote before: several pickles, then the numbers of the tensors
        - "pickle": a pickle; of protocols 0 and 1, only that of a dict or an object
        - "web page": HTML or XML, for example an error page of a server
        - "JSON"
        - "unknown"
    """
    # safetensors first, because the header length at its start can look like any other type.
    if head[8:9] == b"{" and _safetensors_header_length(head) <= _MAX_SAFETENSORS_HEADER:
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if _OLD_TORCH_MAGIC in head:
        return "old torch"
    if _PICKLE.match(head):
        return "pickle"
    text = _text_start(head)
    if text.startswith(b"<"):
        return "web page"
    return "JSON" if text[:1] in _BRACKETS else "unknown"


def check_start(path: Path, name: str, url: str) -> None:
    """Check by its first bytes that a file contains weights, or JSON if the URL ends in ``.json``.

    Args:
        name: what the error sentence calls the file.

    Raises:
        GNDetError: the file is empty or of another type.
    """
    head = read_head(path)
    if not head:
        raise GNDetError(f"{name} is empty.")
    is_json = urlsplit(url).path.lower().endswith(".json")
    kind = file_type(head)
    if kind not in (("JSON",) if is_json else WEIGHTS):
        expected = "JSON" if is_json else "weights (zip, pickle or safetensors)"
        raise GNDetError(f"{name} is {DESCRIPTIONS[kind]}, not {expected}: it begins with {head[:40]!r}.")


def check_content(path: Path, name: str, url: str) -> None:
    """Check the type of a file as :func:`check_start` does, and that its end is not missing.

    Raises:
        GNDetError: the file is empty, of another type or cut off. A missing end is not detected in
            an "old torch" file.
    """
    check_start(path, name, url)
    if not _is_complete(path):
        raise GNDetError(f"{name} is incomplete: it ends after {path.stat().st_size} bytes.")


def _text_start(head: bytes) -> bytes:
    return head.removeprefix(_BYTE_ORDER_MARK).lstrip()


def _safetensors_header_length(head: bytes) -> int:
    return int.from_bytes(head[:8], "little")


def _is_complete(path: Path) -> bool:
    """Return whether a file has its end, as far as its type allows to tell."""
    size, head = path.stat().st_size, read_head(path)
    with open(path, "rb") as file:
        file.seek(max(0, size - 64))
        tail = file.read().rstrip()
    kind = file_type(head)
    if kind == "zip":
        return zipfile.is_zipfile(path)
    if kind == "old torch":
        return True  # it ends with the numbers of the tensors, without an end mark
    if kind == "pickle":
        return tail.endswith(b".")
    if kind == "safetensors":
        return _has_all_tensors(path)
    return tail.endswith(_BRACKETS[_text_start(head)[:1]])


def _has_all_tensors(path: Path) -> bool:
    """Return whether the tensors in the header of a safetensors file are all in the file. They are not read."""
    try:
        with safe_open(path, framework="numpy"):
            return True
    except SafetensorError:
        return False
