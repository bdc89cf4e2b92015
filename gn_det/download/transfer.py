"""A URL into a file, over a network and from servers that fail."""

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
from urllib.parse import urljoin

import requests
from tqdm import tqdm

from ..errors import GNDetError
from .cache import split_url
from .content import check_start

CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 30.0  # seconds; the second is the longest that may pass without a byte
TRIES = 5
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between tries
SAY_EVERY = 10.0  # seconds
LARGEST = 2**35  # bytes, of a server that does not say how many it will send

_REDIRECTS = 5
_CHUNK = 2**16
_random = random.SystemRandom()  # the other one belongs to the run and its seed


class NotDownloaded(Exception):
    """Why a URL was not downloaded. ``passing``: it may go next time, and what came is kept to go on from."""

    def __init__(self, reason: str, passing: bool = False, wait: float = 0.0, restart: bool = False):
        super().__init__(reason)
        self.passing, self.wait, self.restart = passing, wait, restart


class _Session(requests.Session):
    def resolve_redirects(self, *args, **kwargs) -> Iterator[requests.Response]:
        """None: each is looked at first, and requests would read all that comes with it."""
        return iter(())


def download(url: str, part: Path, size: int = 0) -> None:
    """Fill ``part`` with what a URL has, from where an earlier call has stopped.

    Args:
        size: bytes, 0 where it is unknown.

    Raises:
        NotDownloaded: the network or the server does not give it.
        GNDetError: what it gives is no weights file, or too long.
        OSError: the file cannot be written.
    """
    for tried in range(1, TRIES + 1):
        try:
            return _try(url, part, size)
        except NotDownloaded as failure:
            if failure.restart or not failure.passing:
                drop(part)
            if not failure.passing or tried == TRIES:
                raise
            pause = min(FIRST_PAUSE * 2 ** (tried - 1), LONGEST_PAUSE) * _random.uniform(0.5, 1)
            pause = max(pause, min(failure.wait, LONGEST_PAUSE))
            say(f"{url}: {failure}; again in {pause:.0f} s (try {tried} of {TRIES}).")
            time.sleep(pause)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def drop(part: Path) -> None:
    """Remove a file and what is needed to go on with it."""
    part.unlink(missing_ok=True)
    _validator(part).unlink(missing_ok=True)


def _validator(part: Path) -> Path:
    """Where the source of a ``part`` is kept, and the version that it was."""
    return part.with_suffix(".version")


def _try(url: str, part: Path, size: int) -> None:
    done, version = _earlier(part, url)
    headers = {"Accept-Encoding": "identity"}
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": version}
    try:
        with closing(_get(url, headers)) as response:
            start, total = _extent(response, done, version)
            if not start:
                drop(part)
            if size and total > size:
                raise GNDetError(f"{url} has {total} bytes, but should have {size}.")
            _write(response, url, part, start, total or size)
    except requests.RequestException as error:
        raise NotDownloaded(_reason(error), _is_passing(error)) from error
    got = part.stat().st_size
    if got >= total:
        check_start(part, url, url)
    if got < (total or size):
        raise NotDownloaded(f"it broke off after {got} of {total or size} bytes", passing=True)


def _earlier(part: Path, url: str) -> tuple[int, str]:
    """How many bytes are here, and the version of the file that they are of; 0 where it is not known to be this one."""
    try:
        source, version = _validator(part).read_text(encoding="utf-8").splitlines()
        return (part.stat().st_size, version) if source == url else (0, "")
    except (OSError, ValueError):
        return 0, ""


def _version(response: requests.Response) -> str:
    """What stands for the bytes of a file; "" where the server has no such thing."""
    tag = response.headers.get("ETag", "")
    return response.headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag


def _get(url: str, headers: dict[str, str]) -> requests.Response:
    """The answer to a request, after redirects. From https they lead to https only, and never to another kind of URL."""
    for _ in range(_REDIRECTS + 1):
        response = _get_once(url, headers)
        if not response.is_redirect:
            return response
        response.close()
        url = _next(url, response.headers["Location"])
    raise NotDownloaded(f"it redirects more than {_REDIRECTS} times")


def _get_once(url: str, headers: dict[str, str]) -> requests.Response:
    timeout = (CONNECT_TIMEOUT, READ_TIMEOUT)
    try:
        with _Session() as session:  # its end leaves the answer open
            return session.get(url, headers=headers, stream=True, allow_redirects=False, timeout=timeout)
    except requests.RequestException:
        raise
    except (OSError, ValueError) as error:  # certificates that are not where the environment says, no possible host
        raise NotDownloaded(str(error)) from error


def _next(url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
        scheme = split_url(target).scheme
    except ValueError:  # a GNDetError is one
        scheme = ""
    if scheme not in ("https", split_url(url).scheme):
        raise NotDownloaded(f"it redirects to {location!r}, and only https is followed")
    return target


def _extent(response: requests.Response, done: int, version: str) -> tuple[int, int]:
    """The first byte of an answer's body, and how many bytes the whole file has, 0 where the server does not say."""
    code, headers = response.status_code, response.headers
    if (encoding := headers.get("Content-Encoding", "identity")) != "identity":
        raise NotDownloaded(f"it comes with Content-Encoding {encoding!r}, unasked")
    if code == 200:
        length = headers.get("Content-Length", "")
        return 0, int(length) if re.fullmatch("[0-9]{1,18}", length) else 0
    if code == 206:
        span = re.fullmatch("bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", headers.get("Content-Range", ""))
        first, last, total = map(int, span.groups()) if span else (0, 0, 0)
        if first == done and last == total - 1 and _version(response) in (version, ""):
            return done, total
    if done and code in (206, 416):
        raise NotDownloaded("the server has other bytes than those that are missing", passing=True, restart=True)
    passing = code in (408, 429) or code >= 500
    raise NotDownloaded(f"the server answers {code}", passing, _seconds(headers.get("Retry-After", "")))


def _seconds(retry_after: str) -> float:
    """A header's number of seconds or date, in seconds from now."""
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        return email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0


def _is_passing(error: requests.RequestException) -> bool:
    lost = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, lost) and not isinstance(error, requests.exceptions.SSLError)


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.ConnectTimeout):
        return f"there was no connection within {CONNECT_TIMEOUT:g} s"
    if "timed out" in str(error):
        return f"the server was silent for {READ_TIMEOUT:g} s"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "it broke off"
    cause: BaseException = error
    while cause.__context__:
        cause = cause.__context__  # requests wraps what it got from urllib3, and that what it got from the system
    return str(cause).rstrip(".") or type(cause).__name__


def _write(response: requests.Response, url: str, part: Path, start: int, total: int) -> None:
    """Append the body of an answer to a file whose first ``start`` bytes are there; ``total`` is 0 where not known."""
    need_room(part.parent, total - start)
    if not start:
        _validator(part).write_text(f"{url}\n{_version(response)}", encoding="utf-8")
    with open(part, "ab") as file, _meter(part.name.removesuffix("~.part"), start, total) as advance:
        for chunk in response.iter_content(_CHUNK):
            if file.tell() + len(chunk) > (total or LARGEST):
                raise GNDetError(f"{url} sends more than {total or LARGEST} bytes.")
            file.write(chunk)
            advance(len(chunk))


def need_room(folder: Path, size: int) -> None:
    """
    Raises:
        OSError: there is less room than that.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(errno.ENOSPC, f"{size} bytes are needed, and {free} are free")


@contextmanager
def _meter(name: str, done: int, total: int) -> Iterator[Callable[[int], object]]:
    """What to call with the number of bytes that came: a bar on a terminal, elsewhere a line now and then."""
    if sys.stderr.isatty():
        form = {"unit": "B", "unit_scale": True, "dynamic_ncols": True}
        with tqdm(desc=name, initial=done, total=total or None, **form) as bar:
            yield bar.update
        return
    here, begun, said = done, time.monotonic(), time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, said
        done, now = done + count, time.monotonic()
        if now - said >= SAY_EVERY:
            said, speed = now, (done - here) / max(now - begun, 1e-9)
            rest = f", {tqdm.format_interval((total - done) / speed)} to go" if total else ""
            of = f" of {tqdm.format_sizeof(total)}B" if total else ""
            say(f"{name}: {tqdm.format_sizeof(done)}B{of}, {tqdm.format_sizeof(speed)}B/s{rest}")

    yield advance
