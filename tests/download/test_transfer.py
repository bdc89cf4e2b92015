"""What servers and networks do to a download."""

import contextlib
import io
import json
import pickle
import time

import pytest
import requests
import torch

from gn_det import GNDetError
from gn_det.download import transfer as download_module
from gn_det.download.content import check_content
from gn_det.download.fetch import cache_path, fetch
from gn_det.download.transfer import NotDownloaded, _is_passing, _next, _seconds
from helpers.faulty_server import (
    BODY,
    PAGE,
    SHA,
    broken_chunks,
    held,
    left,
    part_of,
    plain,
    redirect,
    refused,
    status,
    truncated,
)

pytestmark = pytest.mark.usefixtures("cache")

# What a server sends


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (PAGE, "is a web page and not weights"),
        (b"\xef\xbb\xbf\n <?xml version='1.0'?><Error/>", "is a web page and not weights"),
        (b'{"error": "gone"}', "is JSON and not weights"),
        (b"Not found", "is something else and not weights (zip, pickle or safetensors): it begins with b'Not found'"),
        (b"\x1b[2J\n", "begins with b'\\x1b[2J\\n'"),
        (b"", "is empty"),
        (BODY[:-1], f"is not whole: it breaks off after {len(BODY) - 1} bytes"),
    ],
)
@pytest.mark.parametrize("length", [False, True])
def test_what_is_no_weights_file_leaves_nothing(server, cache, data, reason, length):
    server.answers = [plain(data, **{"Content_Length": len(data)} if length else {})]
    refused(server.url, server.url, reason)
    assert left(cache) == [] and len(server.requests) == 1


def test_a_page_of_known_size_is_called_a_page(server):
    server.answers = [plain(PAGE)]
    refused(server.url, "is a web page", size=len(BODY))


@pytest.mark.parametrize("known", [{"sha256": "0" * 8}, {"size": len(BODY) - 1}, {"size": len(BODY) + 1}])
def test_another_file_than_the_published_leaves_nothing(server, cache, known):
    sentence = refused(server.url, server.url, len(BODY), *known.values(), **known)
    assert ("sha256" in sentence) == (known != {"size": len(BODY) - 1})  # which the server has said before it sends any
    assert left(cache) == [] and len(server.requests) == 1


def test_a_body_without_end_is_cut(server, cache, monkeypatch):
    monkeypatch.setattr(download_module, "LARGEST", 100_000)
    server.answers = [plain(BODY)]
    refused(server.url, "sends more than 100000 bytes")
    assert left(cache) == []


def test_a_compressed_body_is_not_taken_for_the_file(server, cache):
    server.answers = [plain(BODY, Content_Encoding="gzip")]
    refused(server.url, "Content-Encoding 'gzip'")
    assert left(cache) == []


def test_formats_by_their_bytes(tmp_path):
    def files():
        for zipped in (False, True):
            torch.save({"a": torch.zeros(300)}, buffer := io.BytesIO(), _use_new_zipfile_serialization=zipped)
            yield buffer.getvalue(), zipped
        for protocol in range(5):
            yield pickle.dumps({"blobs": {"a": b"x" * 100}}, protocol), True
        for letter in (ord("<"), ord("{"), ord("\n")):  # the first byte of a length may be any
            head = json.dumps({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}).encode()
            head += b" " * ((letter - len(head)) % 256)
            yield len(head).to_bytes(8, "little") + head + b"\0\0", False

    file = tmp_path / "file"
    for data, has_end in files():
        file.write_bytes(data)
        check_content(file, "it", "https://h/x.pth")
        if has_end:
            file.write_bytes(data[: len(data) // 2])
            with pytest.raises(GNDetError, match="it is not whole: it breaks off after"):
                check_content(file, "it", "https://h/x.pth")
    file.write_bytes(data[:20])
    with pytest.raises(GNDetError, match="it is not whole"):
        check_content(file, "it", "https://h/x.pth")


def test_without_a_length_the_format_tells_that_it_is_whole(server):
    server.answers = [plain(BODY)]
    assert fetch(server.url).read_bytes() == BODY


def test_a_length_that_is_none_is_unknown(server):
    server.answers = [plain(BODY, Content_Length="9" * 5000)]
    assert fetch(server.url).read_bytes() == BODY


def test_json_is_for_urls_of_json(server, cache):
    server.file = b'[{"image_id": 1, "score": 0.5}]'
    assert fetch(f"{server.root}/detections.json").read_bytes() == server.file
    refused(server.url, server.url, "is JSON and not weights")
    server.file = BODY
    refused(f"{server.root}/other.json", "is pickle and not JSON")
    server.file = b'[{"image_id": 1, "sco'
    refused(f"{server.root}/other.json", "is not whole")
    assert left(cache) == ["detections.json", "detections.json~.json"]


# A network that fails


@pytest.mark.parametrize(
    "fault",
    [
        *(status(503), status(500), status(429, Retry_After="0"), status(408), truncated(0), truncated(200_000)),
        *(broken_chunks, lambda handler: handler.connection.close()),
    ],
)
def test_what_passes_is_tried_again(server, fault, capsys):
    server.answers = [fault, fault]
    assert fetch(server.url).read_bytes() == BODY
    assert len(server.requests) == 3
    said = capsys.readouterr().err.splitlines()
    assert [line.endswith(f"(try {n} of 5).") and server.url in line for n, line in enumerate(said, 1)] == [True, True]


@pytest.mark.parametrize("first", [b"", BODY[:100_000]])
def test_a_server_that_falls_silent_is_not_waited_for(server, monkeypatch, capsys, first):
    monkeypatch.setattr(download_module, "READ_TIMEOUT", 0.3)
    with held() as hold:
        server.answers = [hold(first)]
        assert fetch(server.url).read_bytes() == BODY
    assert "the server was silent for 0.3 s" in capsys.readouterr().err


def test_truncated_without_length_is_tried_again_where_the_size_is_known(server):
    server.answers = [plain(BODY[:200_000])]
    assert fetch(server.url, size=len(BODY)).read_bytes() == BODY


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 304])
def test_what_does_not_pass_is_final(server, cache, code):
    server.answers = [status(code)]
    path = cache_path(server.url)
    refused(server.url, f"{server.url} was not downloaded: the server answers {code}. Put it at {path} by hand")
    assert len(server.requests) == 1 and left(cache) == []


def test_tries_end_and_what_came_is_kept_for_the_next_run(server, cache):
    server.answers = [truncated(100_000, ETag='"v1"'), *[status(503)] * 4]
    refused(server.url, "the server answers 503", cache_path(server.url))
    assert len(server.requests) == 5 and "model.pkl~.part" in left(cache) and "model.pkl" not in left(cache)
    server.sent = 0
    fetch(server.url, sha256=SHA)
    assert server.requests[-1][1]["Range"].startswith("bytes=") and 300_000 <= server.sent < len(BODY)
    assert left(cache) == ["model.pkl", "model.pkl~.json"]


def test_a_pause_grows_and_heeds_the_server_up_to_a_limit(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(download_module.time, "sleep", pauses.append)
    monkeypatch.setattr(download_module, "FIRST_PAUSE", 1.0)
    monkeypatch.setattr(download_module, "LONGEST_PAUSE", 60.0)
    server.answers = [status(500), status(500), status(503, Retry_After="20"), status(429, Retry_After="9" * 400)]
    fetch(server.url)
    assert 0.5 <= pauses[0] <= 1 and 1 <= pauses[1] <= 2 and pauses[2:] == [20, 60]
    assert 50 < _seconds(time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))) <= 60
    dates = "", "soon", "Mon, 01 Jan 99999 00:00:00 GMT", "Mon, 01 Jan 2026 00:00:00 +9999999999999"
    assert [_seconds(date) for date in dates] == [0] * 4


# Going on


def interrupted(server, **headers) -> None:
    """A run that got a part of the file and then no more."""
    server.answers = [truncated(262_144, **({"ETag": '"v1"'} | headers)), *[status(503)] * 4]
    refused(server.url)
    server.requests.clear()
    server.sent = 0


def test_it_goes_on_where_it_stopped(server):
    interrupted(server)
    assert fetch(server.url).read_bytes() == BODY
    ((_, headers),) = server.requests
    assert headers["If-Range"] == '"v1"' and server.sent == len(BODY) - int(headers["Range"][6:-1]) < 150_000


def test_a_file_that_was_changed_meanwhile_is_taken_from_its_start(server):
    interrupted(server)
    server.file, server.etag = pickle.dumps({"other": BODY[:300_000]}, 2), '"v2"'
    assert fetch(server.url).read_bytes() == server.file


def test_without_a_version_it_starts_again(server):
    interrupted(server, ETag='W/"v1"')
    assert fetch(server.url).read_bytes() == BODY and "Range" not in server.requests[0][1]


def test_a_date_is_a_version_too(server):
    date = "Tue, 20 Oct 2026 10:00:00 GMT"
    interrupted(server, ETag='W/"v1"', Last_Modified=date)
    server.etag = date
    fetch(server.url)
    assert server.requests[0][1]["If-Range"] == date and server.sent < len(BODY)


def test_what_is_missing_may_come_without_its_version(server):
    """RFC 9110 lets a server leave Last-Modified out there."""
    interrupted(server)
    server.answers = [part_of(262_144, len(BODY) - 1, ETag="")]
    assert fetch(server.url, sha256=SHA) and len(server.requests) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        part_of(0, len(BODY) - 1),
        part_of(262_000, len(BODY) - 1),
        part_of(262_144, 300_000),
        part_of(262_144, len(BODY) - 1, "*"),
        part_of(262_144, len(BODY) - 1, "9" * 5000),
        part_of(262_144, len(BODY) - 1, ETag='"v2"'),
        part_of(262_144, len(BODY) - 1, Content_Range="items 1"),
        status(416, Content_Range=f"bytes */{len(BODY)}"),
    ],
)
def test_other_bytes_than_asked_for_are_not_appended(server, wrong):
    interrupted(server)
    server.answers = [wrong]
    assert fetch(server.url).read_bytes() == BODY
    assert server.requests[0][1]["Range"] == "bytes=262144-" and "Range" not in server.requests[1][1]


def test_part_of_a_file_that_nobody_asked_for(server, cache):
    server.answers = [part_of(0, 1000)]
    refused(server.url, "the server answers 206")
    assert left(cache) == []


def test_a_part_goes_with_its_file(server, cache):
    interrupted(server)
    server.answers = [status(404)]
    refused(server.url, "answers 404")
    assert left(cache) == []


def test_a_part_of_another_source_is_not_gone_on_with(server, monkeypatch):
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
    refused(server.url, "it redirects more than 5 times")
    assert len(server.requests) == 6 and left(cache) == []


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "http://[", "//a@127.0.0.1/x"]
)
def test_redirects_to_other_kinds_of_urls_are_refused(server, cache, target):
    server.answers = [redirect(target)]
    refused(server.url, f"it redirects to {target!r}, and only https is followed")
    assert len(server.requests) == 1 and left(cache) == []


def test_from_https_only_to_https():
    assert _next("https://h/a/b", "c") == "https://h/a/c" and _next("https://h/a", "//i/b") == "https://i/b"
    assert _next("http://h/a", "https://h/b") == "https://h/b" and _next("http://h/a", "/b") == "http://h/b"
    for target in ("http://h/b", "HTTP://h/b", "file:///b", "javascript:0"):
        with pytest.raises(NotDownloaded, match="only https is followed"):
            _next("https://h/a", target)


def test_the_body_of_a_redirect_is_not_read(server):
    def endless(handler):
        handler.start(302, Location="/GN/2")
        with contextlib.suppress(OSError):
            for _ in range(4000):
                handler.body(b"x" * 2**14)

    server.answers = [endless]
    fetch(server.url)
    assert server.sent < 20 * 2**20


def test_a_certificate_that_does_not_hold_is_final():
    assert _is_passing(requests.ConnectionError()) and not _is_passing(requests.exceptions.SSLError())


def test_certificates_that_are_not_there(monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    refused("https://127.0.0.1/x.pkl", "https://127.0.0.1/x.pkl was not downloaded", "/nowhere.pem")


@pytest.mark.parametrize("host", ["a..b", "a" * 70])
def test_hosts_that_are_none(host):
    refused(f"http://{host}/x.pkl", f"http://{host}/x.pkl was not downloaded")


# Progress


def test_lines_of_progress(server, monkeypatch, capsys):
    monkeypatch.setattr(download_module, "SAY_EVERY", 0.0)
    fetch(server.url)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("model.pkl: 65.5kB of 400kB, ") and "B/s, " in lines[0] and lines[0].endswith(" to go")
    server.answers = [plain(BODY)]
    fetch(f"{server.root}/other.pkl")
    assert all("to go" not in line and "B/s" in line for line in capsys.readouterr().err.splitlines())


def test_a_bar_on_a_terminal(server, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    with contextlib.redirect_stderr(terminal):
        fetch(server.url)
    assert "model.pkl: 100%" in terminal.getvalue() and "B/s]" in terminal.getvalue()
