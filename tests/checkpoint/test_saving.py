"""Saving checkpoints: after a failure at any moment, the older checkpoints are usable."""

import errno
import json
import os
import resource
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gn_det import GNDetError
from gn_det.checkpoint import checkpointer as checkpointer_module
from gn_det.checkpoint import saving
from gn_det.checkpoint.checkpointer import Checkpointer
from gn_det.checkpoint.finite import not_finite
from gn_det.checkpoint.manifest import MANIFEST, agrees, read_manifest
from gn_det.checkpoint.newest import newest_good
from helpers.forks import in_a_fork


class State:
    """A part of a checkpoint."""

    def __init__(self, **values):
        self.values = values

    def state_dict(self) -> dict:
        return self.values


def checkpointer(folder: Path, **parts) -> Checkpointer:
    return Checkpointer(nn.Linear(2, 2), str(folder), **parts)


def save(folder: Path, *iterations: int, **parts) -> None:
    for iteration in iterations:
        checkpointer(folder, **parts).save(f"model_{iteration:07d}", iteration=iteration)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_manifest_has_size_digest_and_iteration(tmp_path):
    save(tmp_path, 1, 3)
    entries = read_manifest(tmp_path)
    assert {name: entry.iteration for name, entry in entries.items()} == {
        "model_0000001.pth": 1,
        "model_0000003.pth": 3,
    }
    assert all(agrees(tmp_path / name, entry) for name, entry in entries.items())
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    (tmp_path / "model_0000003.pth").write_bytes(b"x")
    assert not agrees(tmp_path / "model_0000003.pth", entries["model_0000003.pth"])


@pytest.mark.parametrize("text", ["", "[1]", '{"a.pth": 1}', '{"a.pth": {"bytes": 1}}', "{"])
def test_a_damaged_manifest_gives_a_warning_and_is_written_again(tmp_path, caplog, text):
    save(tmp_path, 1)
    (tmp_path / MANIFEST).write_text(text)
    assert newest_good(tmp_path, resumes=True).path.name == "model_0000001.pth"
    assert "checkpoints.json cannot be read" in caplog.text
    save(tmp_path, 3)
    assert list(read_manifest(tmp_path)) == ["model_0000003.pth"]


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("step", ["torch.save", "os.replace", "write_manifest", "save_last"])
@pytest.mark.parametrize("name", ["model_0000003", "model_final"])
def test_a_run_that_is_killed_during_a_save_keeps_a_good_checkpoint(tmp_path, monkeypatch, step, name):
    """Also if the save replaces the only checkpoint, model_final.pth of a run that was extended."""
    first = "model_final" if name == "model_final" else "model_0000001"
    checkpointer(tmp_path).save(first, iteration=1)

    def kill(*args):
        raise Killed

    owners = {"torch.save": torch, "os.replace": os, "write_manifest": saving, "save_last": checkpointer_module}
    with monkeypatch.context() as patch:
        patch.setattr(owners[step], step.rpartition(".")[2], kill)
        with pytest.raises(Killed):
            checkpointer(tmp_path).save(name, iteration=3)
    newest = newest_good(tmp_path, resumes=True)
    assert torch.load(newest.path)["iteration"] in (1, 3)
    assert not [problem for problem in newest.remarks if "digest" in problem or "cut" in problem]


def test_temporary_files_of_killed_saves_are_removed(tmp_path):
    left = tmp_path / ".model_0000001.pth.1-2.part"
    other = tmp_path / ".report.html.1-2.part"
    for path in (left, other):
        path.write_bytes(b"x")
    save(tmp_path, 1)
    assert not left.exists() and other.exists()
    left.write_bytes(b"x")
    checkpointer(tmp_path).resume_or_load("", resume=True)
    assert not left.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_that_is_not_finite_is_not_written(tmp_path, value):
    save(tmp_path, 1)
    state = State(optimizer={"state": {0: {"momentum_buffer": torch.tensor([1.0, value])}}})
    with pytest.raises(GNDetError) as error:
        save(tmp_path, 3, trainer=state)
    assert "(for example trainer.optimizer.state.0.momentum_buffer)" in str(error.value)
    assert "the last good checkpoint is model_0000001.pth" in str(error.value)
    assert names(tmp_path) == [MANIFEST, "last_checkpoint", "model_0000001.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def test_values_that_are_not_finite_are_found():
    values = {
        "a": torch.tensor([1.0, float("nan")]),
        "b": [torch.tensor([float("-inf")])],
        "c": torch.full((2,), 3e38),  # the sum overflows
        "d": torch.tensor(3),
        "e": {"f": (torch.tensor([float("inf"), float("-inf")]),)},
    }
    assert not_finite(values) == ["a", "b.0", "e.f.0"]


def test_a_full_disk_is_noticed_before_a_save(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(GNDetError, match=r"needs 1 MB and its disk has 0 MB left: free some space; the last good"):
        save(tmp_path, 3)
    assert names(tmp_path) == [MANIFEST, "last_checkpoint", "model_0000001.pth"]


def test_a_disk_that_becomes_full_during_a_save(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def write(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saving._Digesting, "write", write)
    with pytest.raises(GNDetError, match="model_0000003.pth cannot be written: .*; the last good checkpoint is"):
        save(tmp_path, 3)
    assert names(tmp_path) == [MANIFEST, "last_checkpoint", "model_0000001.pth"]


def _save_with_limit(folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    try:
        Checkpointer(nn.Linear(1000, 1000), str(folder)).save("model_final", iteration=3)
    except GNDetError as error:
        print(error)


def test_a_limit_of_the_file_size_gives_a_sentence_and_the_old_file_stays(tmp_path):
    checkpointer(tmp_path).save("model_final", iteration=1)
    done = in_a_fork(_save_with_limit, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "model_final.pth cannot be written: " in done.stdout and done.stdout.count("\n") == 1
    assert names(tmp_path) == [MANIFEST, "last_checkpoint", "model_final.pth"]
    assert newest_good(tmp_path, resumes=True).remarks == []


def test_the_last_periodic_checkpoints_are_kept(tmp_path):
    save(tmp_path, 1)
    (tmp_path / MANIFEST).unlink()  # as of an older version
    save(tmp_path, 3)
    checkpointer(tmp_path).write("model_best.pth", {"model": {}})
    checkpointer(tmp_path).save("model_final", iteration=3)
    save(tmp_path, 5, 7, keep=2)
    kept = ["model_0000005.pth", "model_0000007.pth", "model_best.pth", "model_final.pth"]
    assert names(tmp_path) == [MANIFEST, "last_checkpoint", *kept]
    assert sorted(json.loads((tmp_path / MANIFEST).read_text())) == kept


def test_the_checkpoint_of_an_older_state_is_kept_after_going_back(tmp_path):
    save(tmp_path, 1, 3, 5)
    save(tmp_path, 1, keep=2)  # the user went back, and trained again
    assert names(tmp_path)[2:] == ["model_0000001.pth", "model_0000005.pth"]


def test_all_checkpoints_are_kept_by_default(tmp_path):
    save(tmp_path, 1, 3, 5)
    assert len(read_manifest(tmp_path)) == 3
