"""Atomic writing: content, permissions, and no temporary file afterwards."""

import json
import os
import stat
import threading

import pytest

from gn_det.errors import GNDetError
from gn_det.evaluation.detections import read_detections
from gn_det.evaluation.records import read_record
from gn_det.files import read_json, replacing, save_json, save_text
from helpers.errors import error_sentence


def test_replacing_writes_the_file_and_no_other(tmp_path):
    with replacing(tmp_path / "a.txt") as part:
        part.write_text("new")
        assert not (tmp_path / "a.txt").exists() and part.parent == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "new"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError(28, "No space left on device")])
def test_replacing_keeps_the_old_file_after_an_error(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write():
        with replacing(path) as part:
            part.write_text("half")
            raise error

    with pytest.raises(GNDetError if isinstance(error, OSError) else error):
        write()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and path.read_text() == "old"


def test_replacing_keeps_permissions(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.touch(mode=0o640)
    old.chmod(0o640)
    plain = tmp_path / "plain"
    plain.touch()
    for path in (old, new):
        with replacing(path) as part:
            part.chmod(0o600)  # as safetensors does
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    assert stat.S_IMODE(new.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_replacing_flushes_the_file_before_the_rename(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    save_text(tmp_path / "a", "text")
    assert calls[:2] == ["fsync", "replace"]


def test_replacing_in_several_threads(tmp_path):
    path, texts = tmp_path / "a.json", [{"number": n, "rest": "x" * 10_000} for n in range(8)]
    threads = [threading.Thread(target=save_json, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads(path.read_text()) in texts and len(list(tmp_path.iterdir())) == 1


def test_replacing_accepts_the_longest_name(tmp_path):
    name = "é" * 127  # 254 bytes; file systems allow 255
    save_text(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"


def test_error_names_file_reason_and_hint(tmp_path):
    with (
        pytest.raises(GNDetError, match="^The page cannot be written: No such file or directory; do this.$"),
        replacing(tmp_path / "no" / "a", name="The page", hint="; do this"),
    ):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(GNDetError, match="a.json cannot be written: Not a directory.$"):
        save_json(tmp_path / "file" / "a.json", {})


def test_save_text_creates_folders_and_encodes_characters_that_utf8_lacks(tmp_path):
    path = save_text(tmp_path / "new" / "a.html", "\udcff", errors="xmlcharrefreplace")
    assert path.read_text() == "&#56575;"


# ---- reading JSON


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "cannot be read as JSON: Expecting"),
        (b"\xff", "cannot be read as JSON: 'utf-8' codec"),
        (b"", "cannot be read as JSON: Expecting value"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[" * 101 + b"]" * 101, "nested too deeply"),
        (b"9" * 5000, "cannot be read as JSON: Exceeds the limit"),
        (None, "cannot be read: No such file"),
    ],
)
def test_json_that_cannot_be_read(content, problem, tmp_path):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    sentence = error_sentence(read_json, path, "The list a.json")
    assert sentence.startswith("The list a.json ") and problem in sentence


@pytest.mark.parametrize("data", [None, 1, "ü", [], {}, [{"a": [1, [2]]}], json.loads("[" * 100 + "]" * 100)])
def test_json_is_read(data, tmp_path):
    assert read_json(save_json(tmp_path / "a.json", data), "x") == data


@pytest.mark.parametrize("reader", [read_record, read_detections])
@pytest.mark.parametrize("depth", [150, 100_000])
def test_deep_json_of_records_and_detections_is_refused(reader, depth, tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"image_id":' + "[" * depth + "]" * depth + "}]")
    assert f"{path} cannot be read as JSON: it is nested too deeply" in error_sentence(reader, path)
