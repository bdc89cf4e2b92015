"""The download cache: names, verification, full disks, concurrent processes and mirrors."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import pickle
import shutil
import signal
import tempfile
import threading
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save

from gn_det.download.cache import make_record, sidecar_path, write_record
from gn_det.download.fetch import cache_path, fetch
from helpers.faulty_server import (
    BODY,
    PAGE,
    SHA,
    assert_fetch_fails,
    cached_files,
    send_data,
    serve_file,
    stalling,
    status,
)

pytestmark = pytest.mark.usefixtures("cache")

# A first download


def test_a_file_is_downloaded_once_and_recorded(server, cache):
    path = fetch(server.url, sha256=SHA[:8], size=len(BODY))
    assert path == cache_path(server.url) == cache / f"127.0.0.1~{server.server_address[1]}" / "GN" / "1" / "model.pkl"
    assert path.read_bytes() == BODY and cached_files(cache) == ["model.pkl", "model.pkl~.json"]
    record = json.loads(sidecar_path(path, "json").read_text())
    assert (record["url"], record["size"], record["sha256"]) == (server.url, len(BODY), SHA) and record["date"]
    assert fetch(server.url) == path and len(server.requests) == 1
    assert server.requests[0][1]["Accept-Encoding"] == "identity" and "Range" not in server.requests[0][1]


def test_log_line_names_source_path_size_and_digest(server, caplog):
    with caplog.at_level(logging.INFO, "gn_det"):
        path = fetch(server.url)
    assert caplog.messages == [f"Fetched {server.url} to {path}: {len(BODY)} bytes, sha256 {SHA}."]


# Names in the cache

BAD = """
https://h/../x.pkl https://h/a/../../x.pkl https://h/a/%2e%2e/%2E%2E/x.pkl https://h/a/.%2e/x.pkl https://h/..%2f..%2fx.pkl
https://h/..%5c..%5cx.pkl https://h/a\\..\\..\\x.pkl https://h\\..\\..\\x.pkl https://../x.pkl https://%2e%2e/x.pkl https://./x.pkl
https://h/./x.pkl https://h//etc/x.pkl https://h/%2fetc/x.pkl https://h/a%00b.pkl https://h/a%0ab.pkl https://h/a%7f.pkl
https://h https://h/ https://h/a/ https://h/a/.. https:///x.pkl https:x.pkl h/x.pkl /etc/passwd x.pkl file:///etc/x.pkl
ftp://h/x.pkl https://h:0/x.pkl https://h:99999/x.pkl https://h:a/x.pkl https://[/x.pkl https://user:s3cret@h/x.pkl https://@h/x.pkl
""".split()


@pytest.mark.parametrize(
    "url", [*BAD, "", "https://h/a\nb.pkl", "https://h/a b.pkl", "\x1bhttps://h/x.pkl", "https://h/\u202ex"]
)
def test_urls_outside_the_cache_or_without_file_name_are_refused(url, cache):
    sentence = assert_fetch_fails(url)
    assert sentence.isprintable() and "s3cret" not in sentence and not cache.exists()


def test_a_long_url_is_refused():
    assert_fetch_fails("https://h/" + "a/" * 600 + "x.pkl", "too long")


def test_names_in_the_cache(cache):
    def name(url: str) -> str:
        path = cache_path(url)
        assert Path(os.path.realpath(path)).is_relative_to(cache) and all(len(part) < 200 for part in path.parts)
        return path.relative_to(cache).as_posix()

    detectron = "dl.fbaipublicfiles.com/detectron/GN/1/coco_2014_train%3Acoco_2014_valminusminival/model_final.pkl"
    assert name(f"https://{detectron}") == detectron == name(f"HTTPS://{detectron.replace('dl.', 'DL.')}#top")
    for same in (detectron.replace("%3A", ":"), detectron.replace(".com/", ".com:443/")):
        assert name(f"https://{same}") == detectron
    assert name("https://h/gn+ws/a@b,c=d-e_f.pth") == "h/gn+ws/a@b,c=d-e_f.pth"
    assert name("https://h/%252e%252e/C:/~x/*.pkl") == "h/%252e%252e/C%3A/%7Ex/%2A.pkl"
    assert name("http://h/x.pkl") == "h~80/x.pkl" and name("https://[::1]:8443/x.pkl") == "%3A%3A1~8443/x.pkl"
    long = "https://h/" + "a" * 300
    others = "http://h/x.pkl https://h:8443/x.pkl https://h/x.pkl?download=1 https://h/x.pkl?download=2".split()
    others += "https://h/x.pkl~.json https://h/%ff.pkl https://h/%fe.pkl https://h/x%3Fdownload=1.pkl".split()
    others += [f"{long}{end}" for end in ("", ".pkl", "b.pkl", "?x", "?y", "b?x", "/x.pkl")]
    same_file = ["https://h/x.pkl", "https://h/x.pkl?"]
    names = {name(url) for url in same_file + others}
    assert len(names) == 1 + len(others) and len({text.lower() for text in names}) == len(names)
    assert name("https://h/x.pkl?download=1").startswith("h/x~") and name("https://h/x.pkl?download=1").endswith(".pkl")
    assert name(f"{long}.pkl").endswith(".pkl") and len(cache_path(long + "." + "b" * 200).name) <= 150


def test_links_out_of_the_cache_are_refused(cache, tmp_path):
    (tmp_path / "outside").mkdir()
    cache.mkdir(parents=True)
    (cache / "h").symlink_to(tmp_path / "outside")
    assert_fetch_fails("https://h/x.pkl", "is outside the cache", cache / "h" / "x.pkl")


def test_a_cache_that_is_itself_a_link_is_used(server, cache, tmp_path):
    (tmp_path / "big_disk").mkdir()
    cache.parent.symlink_to(tmp_path / "big_disk")
    assert fetch(server.url).is_relative_to(cache) and cached_files(tmp_path / "big_disk")


def test_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", "")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_path("https://h/x.pkl") == Path("/home/me/.torch/iopath_cache/gn_det/h/x.pkl")
    monkeypatch.setenv("FVCORE_CACHE", "~/c")
    assert cache_path("https://h/x.pkl") == Path("/home/me/c/gn_det/h/x.pkl")


# Verification of cached files


def test_a_file_that_was_changed_is_refused_and_kept(server, cache):
    path = fetch(server.url)
    changed = BODY[:1000] + b"?" + BODY[1001:]
    for data in (changed, BODY[:-9], b""):
        path.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()[:16]
        assert_fetch_fails(
            server.url, f"{path} (recorded on 20", digest, SHA[:16], len(data), len(BODY), "Remove the file"
        )
        assert path.read_bytes() == data
    path.unlink()
    assert fetch(server.url).read_bytes() == BODY and len(server.requests) == 2


def test_cached_file_is_verified_against_given_digest_and_size(server):
    path = fetch(server.url)
    assert_fetch_fails(server.url, path, SHA[:16], "abcdef", "Remove the file", sha256="abcdef")
    assert_fetch_fails(server.url, path, len(BODY), 5, size=5)
    assert fetch(server.url, sha256=SHA.upper(), size=len(BODY)) == path


def test_first_digest_is_required_later_if_none_is_published(server, cache):
    path = fetch(server.url)
    path.unlink()
    server.file = pickle.dumps({"other": 1}, 2)
    assert_fetch_fails(server.url, SHA[:16], hashlib.sha256(server.file).hexdigest()[:16], sidecar_path(path, "json"))
    assert cached_files(cache) == ["model.pkl~.json"]
    sidecar_path(path, "json").unlink()
    assert fetch(server.url).read_bytes() == server.file
    path.unlink()
    server.file = BODY
    assert fetch(server.url, sha256=SHA[:8]).read_bytes() == BODY  # a published digest overrides the record


def test_file_put_there_by_hand_is_checked_and_recorded(server, cache):
    path = cache_path(server.url)
    path.parent.mkdir(parents=True)
    path.write_bytes(PAGE)
    assert_fetch_fails(server.url, path, "is a web page", "Remove the file")
    path.write_bytes(BODY[:-100])
    assert_fetch_fails(server.url, path, "incomplete", "Remove the file")
    assert_fetch_fails(server.url, path, "Remove the file", sha256=SHA)
    assert cached_files(cache) == ["model.pkl"]
    path.write_bytes(BODY)
    assert fetch(server.url, sha256=SHA[:6]) == path and not server.requests
    assert json.loads(sidecar_path(path, "json").read_text())["sha256"] == SHA


@pytest.fixture
def tensors() -> bytes:
    """Return the content of a safetensors file."""
    return save({"weight": torch.ones(1000), "bias": torch.ones(10)})


@pytest.mark.parametrize("missing", [1, 40, 4000, 4100])
def test_a_cut_safetensors_file_is_refused_before_it_is_recorded(server, cache, tensors, missing):
    """The server announces no length, so that only the content tells that the end is missing."""
    url = server.url.replace(".pkl", ".safetensors")
    server.answers = [send_data(tensors[:-missing])]
    assert_fetch_fails(url, f"{url} is incomplete: it ends after {len(tensors) - missing} bytes")
    assert cached_files(cache) == []
    server.file = tensors
    assert fetch(url).read_bytes() == tensors


def test_a_cut_file_that_an_older_version_recorded_is_refused(server, tensors):
    url = server.url.replace(".pkl", ".safetensors")
    server.file = tensors
    path = fetch(url)
    path.write_bytes(tensors[:-40])
    write_record(path, make_record(path, url))
    assert_fetch_fails(url, f"{path} is incomplete", "Remove the file to download it again")


WRONG = [{"size": "1"}, {"sha256": "ab"}, {"sha256": None}, {"date": 1}]
WRONG_RECORDS = [json.dumps({"size": 1, "sha256": SHA, "date": "2026"} | wrong) for wrong in WRONG]


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, "\xff", *WRONG_RECORDS])
def test_invalid_record_is_refused(server, text):
    path = fetch(server.url)
    sidecar_path(path, "json").write_text(text, encoding="latin1")
    assert_fetch_fails(server.url, sidecar_path(path, "json"), "remove it and model.pkl")


@pytest.mark.parametrize("sha256", ["g" * 8, "a" * 65, "sha256:ab", " "])
def test_invalid_digest_is_refused(server, sha256):
    assert_fetch_fails(server.url, repr(sha256), "not a sha256", sha256=sha256)


@contextlib.contextmanager
def unprivileged():
    """Drop root privileges, with which every folder is writable."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


def test_read_only_cache_is_used_but_not_extended(server, monkeypatch):
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("FVCORE_CACHE", folder)
        path = cache_path(server.url)
        path.parent.mkdir(parents=True)
        path.write_bytes(BODY)
        folders = [path for path in Path(folder).rglob("*") if path.is_dir()] + [Path(folder)]
        for each in folders:
            each.chmod(0o555)
        with unprivileged():
            assert fetch(server.url, sha256=SHA[:8]) == path and not server.requests
            assert_fetch_fails(f"{server.root}/other.pkl", "Permission denied", "$FVCORE_CACHE")
        for each in folders:
            each.chmod(0o755)
        assert cached_files(Path(folder)) == ["model.pkl"]


# The disk


def test_full_disk_leaves_no_partial_file(server, cache, monkeypatch):
    def full(file) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert_fetch_fails(server.url, cache_path(server.url), "No space left on device", "$FVCORE_CACHE")
    assert cached_files(cache) == []


def test_file_size_limit_leaves_no_partial_file(server, cache):
    """The write fails in the middle of the file."""
    resource = pytest.importorskip("resource")

    def child() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        assert_fetch_fails(server.url, "File too large", "$FVCORE_CACHE")

    assert in_child(child) == 0 and server.sent > 100_000 and cached_files(cache) == []


def test_missing_disk_space_is_detected_before_the_download(server, cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert_fetch_fails(server.url, f"{len(BODY)} bytes are needed, but only 1000 are free")
    assert cached_files(cache) == []


# Several processes


def in_child(work, wait: bool = True) -> int:
    """Run ``work`` in a fork of this process. Return its exit code, or its process id if ``wait`` is False."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if wait else pid
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def test_six_processes_make_one_request(server):
    server.answers = [lambda handler: (time.sleep(0.2), serve_file(handler))]

    def child() -> None:
        assert fetch(server.url, sha256=SHA).read_bytes() == BODY

    children = [in_child(child, wait=False) for _ in range(6)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 6
    assert len(server.requests) == 1


def test_waiting_process_prints_a_message(server, monkeypatch):
    lines, printed = [], threading.Event()
    monkeypatch.setattr("gn_det.download.fetch.print_status", lambda line: (lines.append(line), printed.set()))
    monkeypatch.setattr("gn_det.download.fetch._SILENT_WAIT", 0.01)
    server.answers = [lambda handler: (printed.wait(4), serve_file(handler))]
    other = in_child(lambda: fetch(server.url), wait=False)
    wait_for(lambda: server.requests)
    path = fetch(server.url)
    assert lines == [f"Waiting for another process that is downloading {server.url} to {path} ..."]
    assert os.waitpid(other, 0)[1] == 0 and len(server.requests) == 1


def wait_for(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_download_is_resumed_after_a_killed_process(server, cache):
    part = sidecar_path(cache_path(server.url), "part")
    with stalling() as stall:
        server.answers = [stall(BODY[:262_144])]
        child = in_child(lambda: fetch(server.url), wait=False)
        wait_for(lambda: part.is_file() and part.stat().st_size >= 131_072)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL and part.is_file()
    server.sent = 0
    assert fetch(server.url, sha256=SHA).read_bytes() == BODY
    assert len(server.requests) == 2 and server.sent <= len(BODY) - 131_072
    assert cached_files(cache) == ["model.pkl", "model.pkl~.json"]


# Mirrors and offline use


def test_copy_of_the_cache_works_as_mirror(server, cache, tmp_path, monkeypatch):
    url = f"{server.root}/a%3Ab/x.pkl?download=1"
    fetch(url)
    shutil.move(cache, tmp_path / "mirror")
    server.requests.clear()
    monkeypatch.setenv("GN_DET_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("GN_DET_OFFLINE", "1")
    path = fetch(url, sha256=SHA)
    assert path.is_relative_to(cache) and path.read_bytes() == BODY and not server.requests
    assert json.loads(sidecar_path(path, "json").read_text())["url"] == url


def test_mirror_is_verified_and_replaces_the_server(server, cache, tmp_path, monkeypatch):
    mirror = tmp_path / "mirror"
    file = mirror / cache_path(server.url).relative_to(cache)
    file.parent.mkdir(parents=True)
    monkeypatch.setenv("GN_DET_MIRROR", str(mirror))
    sentence = assert_fetch_fails(
        server.url, server.url, f"the mirror {mirror} has no", file.name, cache_path(server.url)
    )
    assert "nothing else is tried" in sentence
    file.write_bytes(PAGE)
    assert_fetch_fails(server.url, file, "web page")
    file.write_bytes(BODY)
    assert_fetch_fails(server.url, file, "sha256", "abcdef", sha256="abcdef")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert_fetch_fails(server.url, "only 1000 are free")
    assert cached_files(cache) == [] and not server.requests


def test_mirror_can_be_a_url(server, cache, monkeypatch):
    monkeypatch.setenv("GN_DET_MIRROR", f"{server.root}/mirror/")
    url = "https://dl.example.com/a%3Ab/x.pkl"
    path = fetch(url, sha256=SHA)
    assert path == cache / "dl.example.com" / "a%3Ab" / "x.pkl"
    assert server.requests[0][0] == "/mirror/dl.example.com/a%253Ab/x.pkl"  # the folder name contains a %
    server.answers = [status(404)]
    other = "https://dl.example.com/y.pkl"
    assert_fetch_fails(other, other, f"{server.root}/mirror", "responds with status 404")
    for bad in ("s3://bucket", "file:///mirror", f"{server.root.replace('//', '//me:s3cret@')}/mirror"):
        monkeypatch.setenv("GN_DET_MIRROR", bad)
        assert "s3cret" not in assert_fetch_fails(other, "$GN_DET_MIRROR is neither")
    assert len(server.requests) == 2


def test_offline_uses_the_cache_or_names_the_path_for_the_file(server, monkeypatch):
    path, other = fetch(server.url), f"{server.root}/other.pkl"
    monkeypatch.setenv("GN_DET_OFFLINE", "1")
    assert fetch(server.url) == path
    texts = (
        other,
        "GN_DET_OFFLINE is set",
        f"Put the file at {cache_path(other)} by hand",
        "GN_DET_MIRROR",
        "/other.pkl",
    )
    assert_fetch_fails(other, *texts)
    monkeypatch.setenv("GN_DET_MIRROR", server.root)
    assert_fetch_fails(other, *texts[:2])
    monkeypatch.delenv("GN_DET_MIRROR")
    monkeypatch.setenv("GN_DET_OFFLINE", "0")
    fetch(other)
    assert len(server.requests) == 2


def test_connection_error_names_the_path_for_the_file(server):
    server.shutdown()
    server.server_close()
    sentence = assert_fetch_fails(server.url, "Connection refused", cache_path(server.url), "GN_DET_MIRROR")
    assert "HTTPConnectionPool" not in sentence
