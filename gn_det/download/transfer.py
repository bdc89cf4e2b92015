"""Resumable HTTP download with retries."""

import email.utils
import errno
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests
from tqdm import tqdm

from ..errors import GNDetError
from .cache import split_url
from .content import check_start

CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 30.0  # seconds; READ_TIMEOUT is the longest time without a byte
TRIES = 5
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between tries
PROGRESS_INTERVAL = 10.0  # seconds between progress lines without a terminal
MAX_UNKNOWN_SIZE = 2**35  # bytes; limit for a server that does not announce the size

_REDIRECTS = 5
_CHUNK = 2**16  # bytes
_random = random.SystemRandom()  # leaves the state of the seeded global generator unchanged


class DownloadFailed(Exception):  # noqa: N818 - a reason; the error that users see is GNDetError
    """Raised if a URL could not be downloaded; the message is the reason.

    Attributes:
        temporary: whether another try may succeed. The bytes received so far are then kept.
        wait: seconds to wait before the next try, as requested by the server; 0 without a request.
        restart: whether the bytes received so far must be discarded.
    """

    def __init__(self, reason: str, temporary: bool = False, wait: float = 0.0, restart: bool = False):
        super().__init__(reason)
        self.temporary, self.wait, self.restart = temporary, wait, restart


class _Session(requests.Session):
    def resolve_redirects(self, *args: Any, **kwargs: Any) -> Iterator[requests.Response]:
        """Follow no redirect: :func:`_get` checks each target, and requests would read the whole body first."""
        return iter(())


def download(url: str, part: Path, size: int = 0) -> None:
    """Download a URL to the file ``part``. Resume an earlier download of the same URL.

    Args:
        size: the size of the file in bytes; 0 if it is unknown.

    Raises:
        DownloadFailed: the network or the server failed, after up to ``TRIES`` tries.
        GNDetError: the content is not a weights file (JSON if the URL ends with .json), or is longer
            than it should be.
        OSError: the file cannot be written.
    """
    for tried in range(1, TRIES + 1):
        try:
            _try(url, part, size)
            return
        except DownloadFailed as failure:
            if failure.restart or not failure.temporary:
                remove_partial(part)
            if not failure.temporary or tried == TRIES:
                raise
            pause = min(FIRST_PAUSE * 2 ** (tried - 1), LONGEST_PAUSE) * _random.uniform(0.5, 1)
            pause = max(pause, min(failure.wait, LONGEST_PAUSE))
            print_status(f"{url}: {failure}; retrying in {pause:.0f} s (try {tried} of {TRIES} failed).")
            time.sleep(pause)


def print_status(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr, flush=True)


def remove_partial(part: Path) -> None:
    """Remove a partial download, and the file that records its URL and version."""
    part.unlink(missing_ok=True)
    _version_path(part).unlink(missing_ok=True)


def _version_path(part: Path) -> Path:
    """Return the file with the URL of a partial download and the version of its content."""
    return part.with_suffix(".version")


def _try(url: str, part: Path, size: int) -> None:
    """Try once to complete the file ``part``."""
    done, version = _resume_point(part, url)
    headers = {"Accept-Encoding": "identity"}
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": version}
    try:
        with closing(_get(url, headers)) as response:
            start, total = _parse_extent(response, done, version)
            if not start:
                remove_partial(part)
            if size and total > size:
                raise GNDetError(f"{url} has {total} bytes, but should have {size}.")
            _append_body(response, url, part, start, total or size)
    except requests.RequestException as error:
        raise DownloadFailed(_describe(error), _is_temporary(error)) from error
    received = part.stat().st_size
    if received >= total:
        check_start(part, url, url)
    if received < (total or size):
        raise DownloadFailed(f"the connection ended after {received} of {total or size} bytes", temporary=True)


def _resume_point(part: Path, url: str) -> tuple[int, str]:
    """Return the number of bytes already received from this URL and the version of the file they belong to.

    Return (0, "") if there is no partial download, if it comes from another URL, or if the server sent
    no version.
    """
    try:
        source, version = _version_path(part).read_text(encoding="utf-8").splitlines()
        return (part.stat().st_size, version) if source == url else (0, "")
    except (OSError, ValueError):
        return 0, ""


def _version(response: requests.Response) -> str:
    """Return the header that identifies the exact bytes of a file: a strong ETag, else Last-Modified, else ""."""
    tag = response.headers.get("ETag", "")
    return response.headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag


def _get(url: str, headers: dict[str, str]) -> requests.Response:
    """Send a GET request and follow its redirects. Return the response with an unread body."""
    for _ in range(_REDIRECTS + 1):
        response = _get_once(url, headers)
        if not response.is_redirect:
            return response
        response.close()
        url = _redirect_target(url, response.headers["Location"])
    raise DownloadFailed(f"the server redirects more than {_REDIRECTS} times")


def _get_once(url: str, headers: dict[str, str]) -> requests.Response:
    timeout = (CONNECT_TIMEOUT, READ_TIMEOUT)
    try:
        with _Session() as session:  # closing the session leaves the response open
            return session.get(url, headers=headers, stream=True, allow_redirects=False, timeout=timeout)
    except requests.RequestException:
        raise
    except (OSError, ValueError) as error:  # e.g. REQUESTS_CA_BUNDLE names a missing file, or the host is invalid
        raise DownloadFailed(str(error)) from error


def _redirect_target(url: str, location: str) -> str:
    """Return the absolute URL of a redirect. An https URL may redirect to https only, an http URL to both.

    Raises:
        DownloadFailed: the target has another scheme or is invalid.
    """
    try:
        target = urljoin(url, location)
        scheme = split_url(target).scheme
    except ValueError:  # the base class of GNDetError
        scheme = ""
    if scheme not in ("https", split_url(url).scheme):
        raise DownloadFailed(f"the server redirects to {location!r}, but only redirects to https are followed")
    return target


def _parse_extent(response: requests.Response, done: int, version: str) -> tuple[int, int]:
    """Return the position of the body's first byte in the file, and the size of the whole file in bytes.

    The size is 0 if the server does not announce it.

    Raises:
        DownloadFailed: the response has an error status, is compressed, or has other bytes than the
            requested ones.
    """
    code, headers = response.status_code, response.headers
    if (encoding := headers.get("Content-Encoding", "identity")) != "identity":
        raise DownloadFailed(f"the server sends Content-Encoding {encoding!r}, which was not requested")
    if code == 200:
        length = headers.get("Content-Length", "")
        return 0, int(length) if re.fullmatch("[0-9]{1,18}", length) else 0
    if code == 206:
        span = re.fullmatch("bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", headers.get("Content-Range", ""))
        first, last, total = map(int, span.groups()) if span else (0, 0, 0)
        if first == done and last == total - 1 and _version(response) in (version, ""):
            return done, total
    if done and code in (206, 416):
        raise DownloadFailed("the server does not send the requested bytes", temporary=True, restart=True)
    temporary = code in (408, 429) or code >= 500
    raise DownloadFailed(
        f"the server responds with status {code}", temporary, _parse_retry_after(headers.get("Retry-After", ""))
    )


def _parse_retry_after(value: str) -> float:
    """Return the seconds from now that a Retry-After header asks for, given as a number or a date."""
    if value.isdecimal():
        return float(value)
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0


def _is_temporary(error: requests.RequestException) -> bool:
    connection_errors = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, connection_errors) and not isinstance(error, requests.exceptions.SSLError)


def _describe(error: requests.RequestException) -> str:
    """Return the reason of a failure without the names of Python classes and objects."""
    if isinstance(error, requests.ConnectTimeout):
        return f"could not connect within {CONNECT_TIMEOUT:g} s"
    if "timed out" in str(error):
        return f"the server sent nothing for {READ_TIMEOUT:g} s"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was lost"
    cause: BaseException = error
    while cause.__context__:
        cause = cause.__context__  # requests wraps the error of urllib3, which wraps that of the system
    return str(cause).rstrip(".") or type(cause).__name__


def _append_body(response: requests.Response, url: str, part: Path, start: int, total: int) -> None:
    """Append the body of a response to ``part``, which has the first ``start`` bytes of the file.

    Args:
        total: the size of the whole file in bytes; 0 if it is unknown.
    """
    require_free_space(part.parent, total - start)
    if not start:
        _version_path(part).write_text(f"{url}\n{_version(response)}", encoding="utf-8")
    with open(part, "ab") as file, _progress(part.name.removesuffix("~.part"), start, total) as advance:
        for chunk in response.iter_content(_CHUNK):
            if file.tell() + len(chunk) > (total or MAX_UNKNOWN_SIZE):
                raise GNDetError(f"{url} sends more than {total or MAX_UNKNOWN_SIZE} bytes.")
            file.write(chunk)
            advance(len(chunk))


def require_free_space(folder: Path, size: int) -> None:
    """Check that the disk of a folder has ``size`` free bytes.

    Raises:
        OSError: it has fewer.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(errno.ENOSPC, f"{size} bytes are needed, but only {free} are free")


@contextmanager
def _progress(name: str, done: int, total: int) -> Iterator[Callable[[int], object]]:
    """Show the progress: a bar on a terminal, else a line every ``PROGRESS_INTERVAL`` seconds.

    Yields:
        A function to call with the number of bytes that were received since the last call.
    """
    if sys.stderr.isatty():
        bar_format = {"unit": "B", "unit_scale": True, "dynamic_ncols": True}
        with tqdm(desc=name, initial=done, total=total or None, **bar_format) as bar:
            yield bar.update
        return
    resumed_at, start_time, printed_time = done, time.monotonic(), time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, printed_time
        done, now = done + count, time.monotonic()
        if now - printed_time >= PROGRESS_INTERVAL:
            printed_time, speed = now, (done - resumed_at) / max(now - start_time, 1e-9)
            remaining = f", {tqdm.format_interval((total - done) / speed)} remaining" if total else ""
            of_total = f" of {tqdm.format_sizeof(total)}B" if total else ""
            print_status(f"{name}: {tqdm.format_sizeof(done)}B{of_total}, {tqdm.format_sizeof(speed)}B/s{remaining}")

    yield advance
