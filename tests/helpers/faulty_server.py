"""A server on this machine that fails as it is told, and what the tests of downloads share."""

import contextlib
import hashlib
import http.server
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from gn_det import GNDetError
from gn_det.download.fetch import fetch

BODY = pickle.dumps({"weight": np.random.default_rng(0).bytes(400_000)}, 3)
SHA = hashlib.sha256(BODY).hexdigest()
PAGE = b"<!DOCTYPE html>\n<html><body>Please log in.</body></html>"


class Handler(http.server.BaseHTTPRequestHandler):
    """What the test asks for in ``server.answers``, one a request, and then the file."""

    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers)))
        answer = self.server.answers.pop(0) if self.server.answers else good
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            answer(self)

    def start(self, code: int, **headers) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def body(self, data: bytes) -> None:
        for begin in range(0, len(data), 2**14):
            self.wfile.write(data[begin : begin + 2**14])
            self.server.sent += len(data[begin : begin + 2**14])

    def log_message(self, *args) -> None:
        pass


def good(handler: Handler) -> None:
    """As a server does it that knows ranges."""
    data, first = handler.server.file, 0
    span, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
    if span and condition == handler.server.etag:
        first = int(span.removeprefix("bytes=").removesuffix("-"))
    whole = {"ETag": handler.server.etag, "Content_Length": len(data) - first}
    if first:
        handler.start(206, Content_Range=f"bytes {first}-{len(data) - 1}/{len(data)}", **whole)
    else:
        handler.start(200, **whole)
    handler.body(data[first:])


def plain(data: bytes, **headers):
    """Data and the end of the connection, without a length."""

    def answer(handler: Handler) -> None:
        handler.start(200, **headers)
        handler.body(data)

    return answer


def truncated(count: int, **headers):
    return plain(BODY[:count], Content_Length=len(BODY), **headers)


def status(code: int, **headers):
    return lambda handler: handler.start(code, **headers)


def redirect(target: str):
    return status(302, Location=target)


def broken_chunks(handler: Handler) -> None:
    handler.start(200, Transfer_Encoding="chunked")
    handler.body(b"10000\r\n" + BODY[:65536] + b"\r\n10000\r\nand no more")


@contextlib.contextmanager
def held():
    """(bytes) -> an answer that begins with them, and is silent until the end of the context."""
    released = threading.Event()

    def hold(first: bytes):
        def answer(handler: Handler) -> None:
            handler.start(200, Content_Length=len(BODY), ETag=handler.server.etag)
            handler.body(first)
            released.wait(20)

        return answer

    yield hold
    released.set()


def part_of(first: int, last: int, total: int | str = len(BODY), **headers):
    def answer(handler: Handler) -> None:
        headers_ = {"ETag": '"v1"', "Content_Range": f"bytes {first}-{last}/{total}"} | headers
        handler.start(206, Content_Length=last + 1 - first, **headers_)
        handler.body(BODY[first : last + 1])

    return answer


@contextlib.contextmanager
def serve():
    """A server of one file; ``answers`` go before it, ``requests`` are (path, headers), ``sent`` are bytes of bodies."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    server.file, server.etag, server.answers, server.requests, server.sent = BODY, '"v1"', [], [], 0
    server.root = f"http://127.0.0.1:{server.server_address[1]}"
    server.url = f"{server.root}/GN/1/model.pkl"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def left(cache: Path) -> list[str]:
    """The names of the files in the cache, but for the empty ones of locks."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.parent.name != ".locks")


def refused(url: str, *texts: object, **known) -> str:
    with pytest.raises(GNDetError) as error:
        fetch(url, **known)
    sentence = str(error.value)
    assert all(str(text) in sentence for text in texts) and "\n" not in sentence, sentence
    return sentence
