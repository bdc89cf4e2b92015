"""A local HTTP server with programmable faults, and helpers for the tests of downloads."""

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
    """Answer each request with the next of ``server.answers``; when none are left, send the file."""

    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers)))
        answer = self.server.answers.pop(0) if self.server.answers else serve_file
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            answer(self)

    def send_head(self, code: int, **headers) -> None:
        """Send the status and the headers; ``_`` in their names stands for ``-``."""
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send_body(self, data: bytes) -> None:
        for begin in range(0, len(data), 2**14):
            self.wfile.write(data[begin : begin + 2**14])
            self.server.sent += len(data[begin : begin + 2**14])

    def log_message(self, *args) -> None:
        pass


def serve_file(handler: Handler) -> None:
    """Send the file, or the requested range of it, without faults."""
    data, first = handler.server.file, 0
    span, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
    if span and condition == handler.server.etag:
        first = int(span.removeprefix("bytes=").removesuffix("-"))
    common = {"ETag": handler.server.etag, "Content_Length": len(data) - first}
    if first:
        handler.send_head(206, Content_Range=f"bytes {first}-{len(data) - 1}/{len(data)}", **common)
    else:
        handler.send_head(200, **common)
    handler.send_body(data[first:])


def send_data(data: bytes, **headers):
    """Return an answer with this body, by default without Content-Length."""

    def answer(handler: Handler) -> None:
        handler.send_head(200, **headers)
        handler.send_body(data)

    return answer


def truncated(count: int, **headers):
    """Return an answer whose body ends after ``count`` bytes, although Content-Length announces all."""
    return send_data(BODY[:count], Content_Length=len(BODY), **headers)


def status(code: int, **headers):
    return lambda handler: handler.send_head(code, **headers)


def redirect(target: str):
    return status(302, Location=target)


def broken_chunks(handler: Handler) -> None:
    handler.send_head(200, Transfer_Encoding="chunked")
    handler.send_body(b"10000\r\n" + BODY[:65536] + b"\r\n10000\r\nincomplete chunk")


@contextlib.contextmanager
def stalling():
    """Yield a function (bytes) -> answer that sends these bytes, then nothing until the context ends."""
    released = threading.Event()

    def stall(first: bytes):
        def answer(handler: Handler) -> None:
            handler.send_head(200, Content_Length=len(BODY), ETag=handler.server.etag)
            handler.send_body(first)
            released.wait(20)

        return answer

    yield stall
    released.set()


def partial_content(first: int, last: int, total: int | str = len(BODY), **headers):
    def answer(handler: Handler) -> None:
        headers_ = {"ETag": '"v1"', "Content_Range": f"bytes {first}-{last}/{total}"} | headers
        handler.send_head(206, Content_Length=last + 1 - first, **headers_)
        handler.send_body(BODY[first : last + 1])

    return answer


@contextlib.contextmanager
def serve():
    """Yield a running server of one file.

    Attributes of the server:
        file, etag: the content of the file and its ETag.
        answers: functions of the handler that answer the next requests instead of :func:`serve_file`.
        requests: (path, headers) of the requests so far.
        sent: number of bytes of all bodies so far.
        root, url: URLs of the server and of the file.
    """
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


def cached_files(folder: Path) -> list[str]:
    """Return the sorted names of all files in a folder, without lock files."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.parent.name != ".locks")


def assert_fetch_fails(url: str, *texts: object, **expected) -> str:
    """Assert that ``fetch`` raises a GNDetError in one line that contains all texts. Return the error sentence."""
    with pytest.raises(GNDetError) as error:
        fetch(url, **expected)
    sentence = str(error.value)
    assert all(str(text) in sentence for text in texts) and "\n" not in sentence, sentence
    return sentence
