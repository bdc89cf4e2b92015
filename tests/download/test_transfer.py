"""Downloads from faulty servers and networks: wrong content, retries, resuming, redirects and progress."""

import contextlib
import io
import json
import pickle
import time

import pytest
import requests
import torch

from gn_det import GNDetError
from gn_det.download import transfer
from gn_det.download.content import check_content
from gn_det.download.fetch import cache_path, fetch
from gn_det.download.transfer import DownloadFailed, _is_temporary, _parse_retry_after, _redirect_target
from helpers.faulty_server import (
    BODY,
    PAGE,
    SHA,
    assert_fetch_fails,
    broken_chunks,
    cached_files,
    partial_content,
    redirect,
    send_data,
    stalling,
    status,
    truncated,
)

pytestmark = pytest.mark.usefixtures("cache")

# Content of the response


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (PAGE, "is a web page, not weights"),
        (b"\xef\xbb\xbf\n <?xml version='1.0'?><Error/>", "is a web page, not weights"),
        (b'{"error": "gone"}', "is JSON, not weights"),
        (
            b"Not found",
            "is a file of unknown type, not weights (zip, pickle or safetensors): it begins with b'Not found'",
        ),
        (b"\x1b[2J\n", "begins with b'\\x1b[2J\\n'"),
        (b"", "is empty"),
        (BODY[:-1], f"is incomplete: it ends after {len(BODY) - 1} bytes"),
    ],
)
@pytest.mark.parametrize("length", [False, True])
def test_files_other_than_weights_are_refused_and_deleted(server, cache, data, reason, length):
    server.answers = [send_data(data, **{"Content_Length": len(data)} if length else {})]
    assert_fetch_fails(server.url, server.url, reason)
    assert cached_files(cache) == [] and len(server.requests) == 1


def test_web_page_is_named_even_if_its_size_is_wrong(server):
    server.answers = [send_data(PAGE)]
    assert_fetch_fails(server.url, "is a web page", size=len(BODY))


@pytest.mark.parametrize("expected", [{"sha256": "0" * 8}, {"size": len(BODY) - 1}, {"size": len(BODY) + 1}])
def test_file_other_than_the_published_is_refused_and_deleted(server, cache, expected):
    sentence = assert_fetch_fails(server.url, server.url, len(BODY), *expected.values(), **expected)
    # The announced size already exceeds the expected one, so the file is refused before it has a digest.
    assert ("sha256" in sentence) == (expected != {"size": len(BODY) - 1})
    assert cached_files(cache) == [] and len(server.requests) == 1


def test_body_without_end_is_refused_at_the_limit(server, cache, monkeypatch):
    monkeypatch.setattr(transfer, "MAX_UNKNOWN_SIZE", 100_000)
    server.answers = [send_data(BODY)]
    assert_fetch_fails(server.url, "sends more than 100000 bytes")
    assert cached_files(cache) == []


def test_compressed_body_is_refused(server, cache):
    server.answers = [send_data(BODY, Content_Encoding="gzip")]
    assert_fetch_fails(server.url, "Content-Encoding 'gzip'")
    assert cached_files(cache) == []


def test_truncation_is_detected_in_each_format(tmp_path):
    def files():
        for zipped in (False, True):
            torch.save({"a": torch.zeros(300)}, buffer := io.BytesIO(), _use_new_zipfile_serialization=zipped)
            yield buffer.getvalue(), zipped
        for protocol in range(5):
            yield pickle.dumps({"blobs": {"a": b"x" * 100}}, protocol), True
        for letter in (ord("<"), ord("{"), ord("\n")):  # the header length may begin with any byte
            head = json.dumps({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}).encode()
            head += b" " * ((letter - len(head)) % 256)
            yield len(head).to_bytes(8, "little") + head + b"\0\0", False

    file = tmp_path / "file"
    for data, has_end in files():
        file.write_bytes(data)
        check_content(file, "it", "https://h/x.pth")
        if has_end:
            file.write_bytes(data[: len(data) // 2])
            with pytest.raises(GNDetError, match="it is incomplete: it ends after"):
                check_content(file, "it", "https://h/x.pth")
    file.write_bytes(data[:20])
    with pytest.raises(GNDetError, match="it is incomplete"):
        check_content(file, "it", "https://h/x.pth")


def test_file_without_content_length_is_accepted(server):
    server.answers = [send_data(BODY)]
    assert fetch(server.url).read_bytes() == BODY


def test_invalid_content_length_is_ignored(server):
    server.answers = [send_data(BODY, Content_Length="9" * 5000)]
    assert fetch(server.url).read_bytes() == BODY


def test_json_is_accepted_only_from_urls_ending_in_json(server, cache):
    server.file = b'[{"image_id": 1, "score": 0.5}]'
    assert fetch(f"{server.root}/detections.json").read_bytes() == server.file
    assert_fetch_fails(server.url, server.url, "is JSON, not weights")
    server.file = BODY
    assert_fetch_fails(f"{server.root}/other.json", "is a pickle, not JSON")
    server.file = b'[{"image_id": 1, "sco'
    assert_fetch_fails(f"{server.root}/other.json", "is incomplete")
    assert cached_files(cache) == ["detections.json", "detections.json~.json"]


# Retries


@pytest.mark.parametrize(
    "fault",
    [
        *(status(503), status(500), status(429, Retry_After="0"), status(408), truncated(0), truncated(200_000)),
        *(broken_chunks, lambda handler: handler.connection.close()),
    ],
)
def test_temporary_failures_are_retried(server, fault, capsys):
    server.answers = [fault, fault]
    assert fetch(server.url).read_bytes() == BODY
    assert len(server.requests) == 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for n, line in enumerate(lines, 1):
        assert line.startswith(f"{server.url}: ") and line.endswith(f"(try {n} of 5 failed).")


@pytest.mark.parametrize("first", [b"", BODY[:100_000]])
def test_stalled_connection_times_out_and_is_retried(server, monkeypatch, capsys, first):
    monkeypatch.setattr(transfer, "READ_TIMEOUT", 0.3)
    with stalling() as stall:
        server.answers = [stall(first)]
        assert fetch(server.url).read_bytes() == BODY
    assert "the server sent nothing for 0.3 s" in capsys.readouterr().err


def test_truncated_file_without_content_length_is_retried_if_the_size_is_known(server):
    server.answers = [send_data(BODY[:200_000])]
    assert fetch(server.url, size=len(BODY)).read_bytes() == BODY


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 304])
def test_permanent_failures_are_not_retried(server, cache, code):
    server.answers = [status(code)]
    path = cache_path(server.url)
    problem = f"{server.url} could not be downloaded: the server responds with status {code}."
    assert_fetch_fails(server.url, f"{problem} Put the file at {path} by hand")
    assert len(server.requests) == 1 and cached_files(cache) == []


def test_partial_file_is_kept_for_the_next_run_after_the_last_try(server, cache):
    server.answers = [truncated(100_000, ETag='"v1"'), *[status(503)] * 4]
    assert_fetch_fails(server.url, "the server responds with status 503", cache_path(server.url))
    assert (
        len(server.requests) == 5
        and "model.pkl~.part" in cached_files(cache)
        and "model.pkl" not in cached_files(cache)
    )
    server.sent = 0
    fetch(server.url, sha256=SHA)
    assert server.requests[-1][1]["Range"].startswith("bytes=") and 300_000 <= server.sent < len(BODY)
    assert cached_files(cache) == ["model.pkl", "model.pkl~.json"]


def test_pauses_grow_and_follow_retry_after_up_to_a_limit(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(transfer.time, "sleep", pauses.append)
    monkeypatch.setattr(transfer, "FIRST_PAUSE", 1.0)
    monkeypatch.setattr(transfer, "LONGEST_PAUSE", 60.0)
    server.answers = [status(500), status(500), status(503, Retry_After="20"), status(429, Retry_After="9" * 400)]
    fetch(server.url)
    assert 0.5 <= pauses[0] <= 1 and 1 <= pauses[1] <= 2 and pauses[2:] == [20, 60]
    assert 50 < _parse_retry_after(time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))) <= 60
    dates = "", "soon", "Mon, 01 Jan 99999 00:00:00 GMT", "Mon, 01 Jan 2026 00:00:00 +9999999999999"
    assert [_parse_retry_after(date) for date in dates] == [0] * 4


# Resuming


def interrupted(server, **headers) -> None:
    """Run a download that fails after a part of the file; reset the counters of the server."""
    server.answers = [truncated(262_144, **({"ETag": '"v1"'} | headers)), *[status(503)] * 4]
    assert_fetch_fails(server.url)
    server.requests.clear()
    server.sent = 0


def test_interrupted_download_is_resumed(server):
    interrupted(server)
    assert fetch(server.url).read_bytes() == BODY
    ((_, headers),) = server.requests
    assert headers["If-Range"] == '"v1"' and server.sent == len(BODY) - int(headers["Range"][6:-1]) < 150_000


def test_download_restarts_if_the_file_has_changed(server):
    interrupted(server)
    server.file, server.etag = pickle.dumps({"other": BODY[:300_000]}, 2), '"v2"'
    assert fetch(server.url).read_bytes() == server.file


def test_download_restarts_without_etag_or_date(server):
    interrupted(server, ETag='W/"v1"')
    assert fetch(server.url).read_bytes() == BODY and "Range" not in server.requests[0][1]


def test_last_modified_allows_resuming(server):
    date = "Tue, 20 Oct 2026 10:00:00 GMT"
    interrupted(server, ETag='W/"v1"', Last_Modified=date)
    server.etag = date
    fetch(server.url)
    assert server.requests[0][1]["If-Range"] == date and server.sent < len(BODY)


def test_resumed_response_may_lack_the_version(server):
    """RFC 9110 lets a server omit Last-Modified in a response to If-Range."""
    interrupted(server)
    server.answers = [partial_content(262_144, len(BODY) - 1, ETag="")]
    assert fetch(server.url, sha256=SHA) and len(server.requests) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        partial_content(0, len(BODY) - 1),
        partial_content(262_000, len(BODY) - 1),
        partial_content(262_144, 300_000),
        partial_content(262_144, len(BODY) - 1, "*"),
        partial_content(262_144, len(BODY) - 1, "9" * 5000),
        partial_content(262_144, len(BODY) - 1, ETag='"v2"'),
        partial_content(262_144, len(BODY) - 1, Content_Range="items 1"),
        status(416, Content_Range=f"bytes */{len(BODY)}"),
    ],
)
def test_bytes_of_another_range_are_not_appended(server, wrong):
    interrupted(server)
    server.answers = [wrong]
    assert fetch(server.url).read_bytes() == BODY
    assert server.requests[0][1]["Range"] == "bytes=262144-" and "Range" not in server.requests[1][1]


def test_partial_response_without_a_range_request_is_refused(server, cache):
    server.answers = [partial_content(0, 1000)]
    assert_fetch_fails(server.url, "the server responds with status 206")
    assert cached_files(cache) == []


def test_partial_file_is_deleted_after_a_permanent_failure(server, cache):
    interrupted(server)
    server.answers = [status(404)]
    assert_fetch_fails(server.url, "responds with status 404")
    assert cached_files(cache) == []


def test_partial_file_of_another_source_is_not_resumed(server, monkeypatch):
    interrupted(server)
    monkeypatch.setenv("GN_DET_MIRROR", f"{server.root}/mirror")
    fetch(server.url)
    assert "Range" not in server.requests[0][1]


# Redirects


def test_redirects_are_followed(server):
    server.answers = [redirect("/else/where?token=1"), redirect(f"{server.root}/third")]
    assert fetch(server.url) == cache_path(server.url)
    assert [path for path, _ in server.requests] == ["/GN/1/model.pkl", "/else/where?token=1", "/third"]


def test_a_range_survives_redirects(server):
    server.answers = [redirect("/cdn/1"), truncated(262_144, ETag='"v1"'), redirect("/cdn/2")]
    fetch(server.url)
    assert [path for path, _ in server.requests[1:]] == ["/cdn/1", server.requests[0][0], "/cdn/2"]
    assert server.requests[3][1]["Range"] == "bytes=262144-"


def test_redirects_end(server, cache):
    server.answers = [redirect(f"/{n}") for n in range(9)]
    assert_fetch_fails(server.url, "the server redirects more than 5 times")
    assert len(server.requests) == 6 and cached_files(cache) == []


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "http://[", "//a@127.0.0.1/x"]
)
def test_redirects_to_other_kinds_of_urls_are_refused(server, cache, target):
    server.answers = [redirect(target)]
    assert_fetch_fails(server.url, f"the server redirects to {target!r}, but only redirects to https are followed")
    assert len(server.requests) == 1 and cached_files(cache) == []


def test_https_redirects_only_to_https():
    assert (
        _redirect_target("https://h/a/b", "c") == "https://h/a/c"
        and _redirect_target("https://h/a", "//i/b") == "https://i/b"
    )
    assert (
        _redirect_target("http://h/a", "https://h/b") == "https://h/b"
        and _redirect_target("http://h/a", "/b") == "http://h/b"
    )
    for target in ("http://h/b", "HTTP://h/b", "file:///b", "javascript:0"):
        with pytest.raises(DownloadFailed, match="only redirects to https are followed"):
            _redirect_target("https://h/a", target)


def test_the_body_of_a_redirect_is_not_read(server):
    def endless(handler):
        handler.send_head(302, Location="/GN/2")
        with contextlib.suppress(OSError):
            for _ in range(4000):
                handler.send_body(b"x" * 2**14)

    server.answers = [endless]
    fetch(server.url)
    assert server.sent < 20 * 2**20


def test_invalid_certificate_is_not_retried():
    assert _is_temporary(requests.ConnectionError()) and not _is_temporary(requests.exceptions.SSLError())


def test_missing_certificate_file_is_named(monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    assert_fetch_fails("https://127.0.0.1/x.pkl", "https://127.0.0.1/x.pkl could not be downloaded", "/nowhere.pem")


@pytest.mark.parametrize("host", ["a..b", "a" * 70])
def test_invalid_hosts_are_refused(host):
    assert_fetch_fails(f"http://{host}/x.pkl", f"http://{host}/x.pkl could not be downloaded")


# Progress


def test_progress_lines_without_a_terminal(server, monkeypatch, capsys):
    monkeypatch.setattr(transfer, "PROGRESS_INTERVAL", 0.0)
    fetch(server.url)
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines[0].startswith("model.pkl: 65.5kB of 400kB, ") and "B/s, " in lines[0] and lines[0].endswith(" remaining")
    )
    server.answers = [send_data(BODY)]
    fetch(f"{server.root}/other.pkl")
    assert all("remaining" not in line and "B/s" in line for line in capsys.readouterr().err.splitlines())


def test_progress_bar_on_a_terminal(server, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    with contextlib.redirect_stderr(terminal):
        fetch(server.url)
    assert "model.pkl: 100%" in terminal.getvalue() and "B/s]" in terminal.getvalue()
