"""Choosing the checkpoint to resume from, or to predict with, when files are damaged or missing."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from gn_det import GNDetError
from gn_det.checkpoint.checkpointer import Checkpointer
from gn_det.checkpoint.load import read_file
from gn_det.checkpoint.manifest import MANIFEST
from gn_det.checkpoint.newest import has_checkpoints, newest_good
from gn_det.checkpoint.safetensors_io import write_safetensors

GOOD, BAD = "model_0000001.pth", "model_0000003.pth"


@pytest.fixture
def run(tmp_path) -> Path:
    """A folder with two checkpoints."""
    for iteration in (1, 3):
        data = {
            "raw_model": {"weight": torch.ones(500)},
            "trainer": {"momentum": torch.ones(500)},
            "iteration": iteration,
        }
        Checkpointer(nn.Linear(30, 30), str(tmp_path)).save(f"model_{iteration:07d}", **data)
    return tmp_path


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path, place: float = 0.5) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * place)] ^= 4
    file.write_bytes(content)


def spoil(part: str, key: str):
    def change(file: Path) -> None:
        data = torch.load(file)
        data[part][key].view(-1)[3] = float("nan")
        torch.save(data, file)

    return change


DAMAGE = {
    "cut": (cut, "it is cut"),
    "empty": (empty, "it is cut|it is empty"),
    "bit": (flip, "checksum of its entry"),
    "NaN in the model": (spoil("model", "weight"), r"NaN or infinity \(for example model.weight\)"),
    "NaN in the trained weights": (spoil("raw_model", "weight"), r"NaN or infinity \(for example raw_model.weight\)"),
    "NaN in the optimizer": (spoil("trainer", "momentum"), r"NaN or infinity \(for example trainer.momentum\)"),
}


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("case", DAMAGE)
def test_the_newest_good_checkpoint_is_chosen(run, case, listed, caplog):
    damage, reason = DAMAGE[case]
    damage(run / BAD)
    if not listed:
        (run / MANIFEST).unlink()
    for resumes in (True, False):
        newest = newest_good(run, resumes=resumes)
        (remark,) = newest.remarks
        assert newest.path == run / GOOD and remark.startswith(f"{BAD} is not used, because ")
        assert re.search(reason, remark)
    Checkpointer(nn.Linear(30, 30), str(run)).resume_or_load("", resume=True)
    assert f"The newest good checkpoint is used: {run / GOOD}" in caplog.text
    assert (run / "last_checkpoint").read_text() == GOOD


@pytest.mark.parametrize("place", [0.3, 0.5, 0.7])
def test_a_flipped_bit_is_refused_when_the_file_is_read(run, place):
    flip(run / BAD, place)
    with pytest.raises(GNDetError, match="could not be read: it is damaged: the checksum of its entry"):
        read_file(run / BAD)


def test_a_flipped_bit_in_safetensors_is_refused(tmp_path):
    file = tmp_path / "x.safetensors"
    write_safetensors(file, {"a": torch.ones(500), "b": torch.zeros(0), "c": torch.tensor(True)}, {})
    assert read_file(file)["model"]["a"].sum() == 500
    flip(file, 0.8)
    with pytest.raises(GNDetError, match="it is damaged: the digest of its tensors"):
        read_file(file)


def test_nothing_is_changed_if_no_checkpoint_is_good(run):
    cut(run / GOOD)
    empty(run / BAD)
    before = {path: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(GNDetError, match=f"contains no checkpoint that can be used: {BAD} is .*; {GOOD} is not used"):
        Checkpointer(nn.Linear(30, 30), str(run)).resume_or_load("", resume=True)
    assert before == {path: path.read_bytes() for path in run.iterdir()}


def missing(file: Path) -> None:
    file.unlink()


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


LAST = {
    "missing": (missing, "is missing"),
    "a folder": (folder, "cannot be read"),
    "empty": (lambda file: file.write_text(""), "does not name a file"),
    "binary": (lambda file: file.write_bytes(b"\xff\xfe\x00model"), "cannot be read"),
    "NUL": (lambda file: file.write_bytes(b"a\x00b"), "does not name a file"),
    "missing file": (lambda file: file.write_text("gone.pth"), "does not name a file"),
    "a way out": (lambda file: file.write_text("../x.pth"), "does not name a file"),
    "the folder": (lambda file: file.write_text("."), "does not name a file"),
}


@pytest.mark.parametrize("case", LAST)
def test_last_checkpoint_is_mended(run, case, caplog):
    change, reason = LAST[case]
    change(run / "last_checkpoint")
    assert has_checkpoints(run)
    Checkpointer(nn.Linear(30, 30), str(run)).resume_or_load("", resume=True)
    assert f"last_checkpoint {reason}" in caplog.text and str(run / BAD) in caplog.text
    assert (run / "last_checkpoint").read_text() == BAD


def test_an_evaluation_does_not_change_the_folder(run):
    missing(run / "last_checkpoint")
    (run / ".model_0000005.pth.1-2.part").write_bytes(b"")
    before = sorted(run.iterdir())
    Checkpointer(nn.Linear(30, 30), str(run), trains=False).resume_or_load("", resume=True)
    assert sorted(run.iterdir()) == before


def test_resuming_goes_back_to_an_older_state_that_the_user_names(run):
    (run / "last_checkpoint").write_text(GOOD)
    newest = newest_good(run, resumes=True)
    assert newest.path.name == GOOD and newest.remarks == [
        f"last_checkpoint names {GOOD}, so {BAD} is not used, which is newer"
    ]
    assert newest_good(run, resumes=False).path.name == BAD


@pytest.mark.parametrize("listed", [True, False])
def test_the_final_checkpoint_of_a_shorter_run_is_not_the_newest(run, listed):
    Checkpointer(nn.Linear(30, 30), str(run)).save("model_final", iteration=1)
    if not listed:
        (run / MANIFEST).unlink()
    assert newest_good(run, resumes=False).path.name == BAD
    Checkpointer(nn.Linear(30, 30), str(run)).save("model_final", iteration=3)
    assert newest_good(run, resumes=False).path.name == "model_final.pth"


def test_a_checkpoint_that_was_changed_by_hand_is_used_with_a_warning(run):
    data = torch.load(run / BAD)
    data["model"]["bias"].zero_()
    torch.save(data, run / BAD)
    newest = newest_good(run, resumes=True)
    assert newest.path.name == BAD
    assert newest.remarks == [f"{BAD} was changed after it was saved: its digest differs from that in checkpoints.json"]


def test_the_best_weights_are_not_resumed_from(tmp_path):
    Checkpointer(nn.Linear(2, 2), str(tmp_path)).write("model_best.pth", {"model": {"a": torch.ones(2)}})
    assert not has_checkpoints(tmp_path)


def test_weights_without_the_state_of_a_training_are_refused(run):
    data = torch.load(run / BAD)
    del data["trainer"]
    torch.save(data, run / BAD)
    checkpointer = Checkpointer(nn.Linear(30, 30), str(run), trainer=nn.Linear(1, 1))
    with pytest.raises(GNDetError, match="has weights and no state of a training"):
        checkpointer.resume_or_load("", resume=True)


def test_a_damaged_file_that_the_user_names_is_not_used(run):
    (run / "last_checkpoint").write_text(GOOD)
    cut(run / GOOD)
    newest = newest_good(run, resumes=True)
    assert newest.path.name == BAD and len(newest.remarks) == 1 and newest.remarks[0].startswith(f"{GOOD} is not used")
