"""Rows 1 to 5 and 13: checkpoints that are cut, changed, lost or spoilt, and full disks."""

import zipfile
from pathlib import Path

import torch

from . import inject
from .frame import Lost, case, check, finished, named, row
from .lab import ITERATIONS, Lab
from .look import contents, part, steps, weights

row(1, "SIGKILL while a checkpoint is written", "`--resume` goes on from the last complete checkpoint")
row(2, "newest checkpoint cut or empty", "named; `--resume` goes back to the newest good one")
row(3, "`last_checkpoint` lost, empty, or naming another file", "the newest good checkpoint in the folder is used")
row(4, "a flipped bit in a checkpoint", "found by a digest; `--resume` goes back to the newest good one")
row(5, "disk full", "named; older files stay good; the partial file is removed")
row(13, "NaN in a checkpoint", "refused, or an older one is used; a checkpoint with NaN is never written")

EMA = ("TRAIN.EMA.ENABLED", "True")
EXTENDED = ITERATIONS + 2  # iterations of a finished run that is extended


# --- 1 ----------------------------------------------------------------------------------------------------------


@case(1, "at each file operation of a save")
def kill_at_operations(lab: Lab) -> str:
    out = lab.out()
    for number in range(12):
        if not lab.kill_at_operation(out, number, "SOLVER.CHECKPOINT_PERIOD", 1, resume=number > 0):
            break
    done = lab.train(out, "SOLVER.CHECKPOINT_PERIOD", 1, resume=True)
    return lab.equal(out, done)


@case(1, "while the third checkpoint is written")
def kill_in_writing(lab: Lab) -> str:
    out, trace = lab.copy(lab.shared.interrupted(lab.stock)), lab.folder / "trace"
    for share in (0.0, 0.3, 0.6, 0.9, 1.0):
        lab.kill_while_writing(out, share, resume=True)
    done = lab.train(out, resume=True, faults=[(inject.trace_iterations, str(trace))])
    finished(done)
    begun = steps(trace)
    check(not begun or begun[0][0] >= 4, f"went back to iteration {begun and begun[0][0]} of 4")
    return lab.equal(out, done)


@case(1, "while model_final.pth is written over")
def kill_in_writing_over(lab: Lab) -> str:
    out = lab.copy(lab.shared.reference(lab.stock))
    longer = ("SOLVER.MAX_ITER", EXTENDED, "SOLVER.CHECKPOINT_PERIOD", 100)
    for share in (0.0, 0.4, 0.8):
        lab.kill_while_writing(out, share, *longer, resume=True)
    for number in range(8):
        if not lab.kill_at_operation(out, number, *longer, resume=True):
            break
    return extended(lab, out, lab.train(out, *longer, resume=True))


def extended(lab: Lab, out: Path, done) -> str:
    """Check the weights of a finished run that was extended: those of a run extended without faults."""
    finished(done)
    key = "SOLVER.MAX_ITER", EXTENDED, "SOLVER.CHECKPOINT_PERIOD", 100
    calm = lab.copy(lab.shared.reference(lab.stock))
    finished(lab.train(calm, *key, resume=True))
    check((out / "model_final.pth").is_file(), "model_final.pth is missing")
    found = weights(out / "model_final.pth")
    check(found == weights(calm / "model_final.pth"), "model_final.pth is not that of an undisturbed extension")
    return "survived: final weights equal"


@case(1, "at three moments of the training")
def kill_anywhere(lab: Lab) -> str:
    out = lab.out()
    for moment in (1, 3, 5):
        lab.kill_at_iteration(out, moment, "SOLVER.CHECKPOINT_PERIOD", 1, resume=moment > 1)
    return lab.equal(out, lab.train(out, "SOLVER.CHECKPOINT_PERIOD", 1, resume=True))


# --- 2 to 4 -----------------------------------------------------------------------------------------------------


def cut(file: Path, size: float) -> None:
    """Keep the first bytes of a file: a number, or a share below 1."""
    data = file.read_bytes()
    file.write_bytes(data[: int(size * len(data)) if 0 < size < 1 else int(size)])


def flip(file: Path, place: float) -> None:
    """Change one bit in the largest tensor of a checkpoint, at a share of its bytes."""
    with zipfile.ZipFile(file) as archive:
        entry = max(archive.infolist(), key=lambda e: e.file_size)
    data = bytearray(file.read_bytes())
    data[entry.header_offset + 200 + int(place * (entry.file_size - 200))] ^= 4
    file.write_bytes(data)


def resume_without(lab: Lab, out: Path, bad: str) -> str:
    """Resume a run whose newest checkpoint is bad: it has to be named, and the older one used."""
    done = lab.train(out, resume=True)
    if done.returncode == 0:
        check(bad in done.stdout + done.stderr, f"exit code 0, and {bad} is not named")
        return lab.equal(out, done)
    named(done, bad)
    raise Lost(f"named, but the good checkpoint of iteration {lab.good_checkpoints(out)} is not used")


@case(2, "half of it left, --resume", 0.5)
@case(2, "0 bytes left, --resume", 0)
@case(2, "100 bytes left, --resume", 100)
def cut_newest(lab: Lab, size: float) -> str:
    out = lab.copy(lab.shared.interrupted(lab.stock))
    cut(out / "model_0000003.pth", size)
    return resume_without(lab, out, "model_0000003.pth")


@case(2, "the only one cut: --resume")
def cut_only(lab: Lab) -> str:
    out = only_final(lab)
    cut(out / "model_final.pth", 0.5)
    before = contents(out, "log.txt")
    sentence = named(lab.train(out, "SOLVER.MAX_ITER", EXTENDED, resume=True), "model_final.pth")
    after = contents(out, "log.txt")
    check(all(after.get(name) == before[name] for name in before if name.endswith(".pth")), "a checkpoint was changed")
    return sentence


@case(2, "the only one cut: predict", "predict")
@case(2, "the only one cut: --eval-only", "evaluate")
def cut_for_others(lab: Lab, command: str) -> str:
    out = only_final(lab)
    cut(out / "model_final.pth", 0.5)
    return named(getattr(lab, command)(out), "model_final.pth")


def only_final(lab: Lab) -> Path:
    """Copy a finished run, with model_final.pth as the only checkpoint."""
    out = lab.copy(lab.shared.reference(lab.stock))
    (out / "model_0000003.pth").unlink()
    return out


@case(3, "missing beside checkpoints", None)
@case(3, "empty", b"")
@case(3, "naming a file that is not there", b"model_0009999.pth")
@case(3, "leading out of the folder", b"../../secret.pth")
@case(3, "not UTF-8", b"\xff\xfe\x00model")
def last_checkpoint_spoilt(lab: Lab, content: bytes | None) -> str:
    out = lab.copy(lab.shared.interrupted(lab.stock))
    if content is None:
        (out / "last_checkpoint").unlink()
    else:
        (out / "last_checkpoint").write_bytes(content)
    return mended(lab, out)


@case(3, "a folder of that name")
def last_checkpoint_folder(lab: Lab) -> str:
    out = lab.copy(lab.shared.interrupted(lab.stock))
    (out / "last_checkpoint").unlink()
    (out / "last_checkpoint").mkdir()
    return mended(lab, out)


def mended(lab: Lab, out: Path) -> str:
    """Resume; the training goes on from iteration 4, or stops with a sentence and changes no checkpoint."""
    before, trace = contents(out), lab.folder / "trace"
    done = lab.train(out, resume=True, faults=[(inject.trace_iterations, str(trace))])
    if done.returncode == 0:
        begun = steps(trace)
        check(
            not begun or begun[0][0] == 4, f"trained again from iteration {begun and begun[0][0]}, over the checkpoints"
        )
        check("last_checkpoint" in done.stdout + done.stderr, "not said that last_checkpoint is unusable")
        return lab.equal(out, done)
    sentence = named(done, "last_checkpoint")
    check({n: d for n, d in contents(out).items() if n.endswith(".pth")} == pth(before), "a checkpoint was changed")
    return sentence


def pth(files: dict[str, str]) -> dict[str, str]:
    """The checkpoints among files."""
    return {name: digest for name, digest in files.items() if name.endswith(".pth")}


@case(4, "--resume, with an older checkpoint")
def flip_newest(lab: Lab) -> str:
    out = lab.copy(lab.shared.interrupted(lab.stock))
    flip(out / "model_0000003.pth", 0.5)
    return resume_without(lab, out, "model_0000003.pth")


@case(4, "--resume, the only checkpoint", "extend")
@case(4, "predict", "predict", fast=True)
@case(4, "--eval-only", "evaluate")
def flip_only(lab: Lab, command: str) -> str:
    out = only_final(lab)
    flip(out / "model_final.pth", 0.25)
    if command == "extend":
        return named(lab.train(out, "SOLVER.MAX_ITER", EXTENDED, resume=True), "model_final.pth")
    return named(getattr(lab, command)(out), "model_final.pth")


# --- 5 ----------------------------------------------------------------------------------------------------------


@case(5, "in the second checkpoint")
def full_in_periodic(lab: Lab) -> str:
    out = lab.copy(lab.shared.interrupted(lab.stock))
    before = pth(contents(out))
    done = lab.train(out, resume=True, faults=[(inject.limit_file_size, 60_000_000)])
    return full(lab, out, done, before, lab.equal)


@case(5, "while model_final.pth is written over")
def full_in_final(lab: Lab) -> str:
    out = lab.copy(lab.shared.reference(lab.stock))
    before = pth(contents(out))
    longer = ("SOLVER.MAX_ITER", EXTENDED, "SOLVER.CHECKPOINT_PERIOD", 100)
    done = lab.train(out, *longer, resume=True, faults=[(inject.limit_file_size, 60_000_000)])
    return full(lab, out, done, before, lambda out, done: extended(lab, out, done), *longer)


def full(lab: Lab, out: Path, done, before: dict[str, str], equal, *options: object) -> str:
    """Check a run on a full disk: named, nothing changed, nothing left behind; with room again, it goes on."""
    sentence = named(done, "model_", "checkpoint")
    check(pth(contents(out)) == before, f"checkpoints changed: {sorted(pth(contents(out)).items() ^ before.items())}")
    left = [file.name for file in out.iterdir() if file.stat().st_size > 1_000_000 and file.name not in before]
    check(not left, f"left behind: {left}")
    equal(out, lab.train(out, *options, resume=True))
    return sentence


@case(5, "in metrics.json", "metrics.json")
@case(5, "in TensorBoard's events", "events.out*")
@case(5, "in log.txt", "log.txt")
@case(5, "in the report", "*report.html*", stock=False)
def full_elsewhere(lab: Lab, pattern: str) -> str:
    out = lab.copy(lab.shared.interrupted(lab.stock))
    return lab.equal(out, lab.train(out, resume=True, faults=[(inject.fill_disk, pattern)]))


# --- 13 ---------------------------------------------------------------------------------------------------------


def spoil(file: Path, name: str) -> None:
    """Put NaN into a tensor of a part of a checkpoint."""
    checkpoint = torch.load(file, weights_only=True)
    tensors = part(checkpoint, name)
    tensors = tensors["state"][0] if name == "optimizer" else tensors
    next(t for t in tensors.values() if isinstance(t, torch.Tensor) and t.is_floating_point()).view(-1)[0] = float(
        "nan"
    )
    torch.save(checkpoint, file)


def alone(lab: Lab, *options: object) -> Path:
    """Return a folder with config, last_checkpoint and model_final.pth of a finished run, and nothing else."""
    source, out = lab.shared.reference(lab.stock, ITERATIONS, *options), lab.out()
    out.mkdir()
    for name in ("config.yaml", "last_checkpoint", "model_final.pth"):
        (out / name).write_bytes((source / name).read_bytes())
    return out


@case(13, "in the weights: --resume", "model", "extend")
@case(13, "in the weights: predict", "model", "predict")
@case(13, "in the weights: --eval-only", "model", "evaluate")
@case(13, "in the momentum: --resume", "optimizer", "extend")
@case(13, "in the weights under EMA: --resume", "raw_model", "extend", *EMA, stock=False)
def nan_in_checkpoint(lab: Lab, name: str, command: str, *options: object) -> str:
    out = alone(lab, *options)
    spoil(out / "model_final.pth", name)
    if command != "extend":
        return named(getattr(lab, command)(out), "model_final.pth")
    done = lab.train(out, "SOLVER.MAX_ITER", EXTENDED, *options, resume=True)
    sentence = named(done, "model_final.pth")
    written = [file.name for file in out.glob("*.pth") if file.name != "model_final.pth"]
    check(not written, f"{written} was written from it")
    return sentence


@case(13, "in the newest of two checkpoints: --resume")
def nan_in_newest(lab: Lab) -> str:
    out = lab.copy(lab.shared.interrupted(lab.stock))
    spoil(out / "model_0000003.pth", "model")
    return resume_without(lab, out, "model_0000003.pth")
