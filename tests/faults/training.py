"""Rows 8 to 12: resumed and changed runs, NaN in losses and gradients."""

import json
import re
import signal
from pathlib import Path

import torch

from gn_det.config.files import config_dir

from . import inject
from .checkpoints import pth
from .frame import case, check, finished, named, no_traceback, row
from .lab import ITERATIONS, Lab
from .look import contents, known_keys, weights

row(8, "resumed after the best checkpoint", "best value and early stop go on")
row(9, "resumed with another number of processes, batch or schedule", "what changed is said")
row(10, "`--resume` of a finished run, or of nothing", "said; a finished run stays as it is")
row(11, "NaN or infinity in a loss", "stops before the step; losses, images and last good checkpoint are named")
row(12, "NaN in a gradient, with finite losses", "stops before the step; no checkpoint has NaN")

LINE = 600  # characters; longer lines are lists of everything, such as the build settings of PyTorch
NAN, INF = float("nan"), float("inf")


# --- 8 ----------------------------------------------------------------------------------------------------------

BEST = """TEST.EVAL_PERIOD 1 TRAIN.BEST True TRAIN.EARLY_STOP.PATIENCE 3 MODEL.MASK_ON False SOLVER.CHECKPOINT_PERIOD 1
    TRAIN.PICTURES 0""".split()


@case(8, "killed after the best evaluation", stock=False)
def best_is_kept(lab: Lab) -> str:
    out = lab.out()
    shares = {1: 0.3, 2: 0.8, 3: 0.5, 4: 0.6, 5: 0.4, 6: 0.4}
    find = (inject.find_share, str(lab.shared.data / "val.json"), shares)
    kill = (inject.at_iteration, 3, inject.send, signal.SIGKILL)
    lab.killed(lab.train(out, *BEST, faults=[find, kill], evaluated=True))
    best = weights(out / "model_best.pth")
    done = lab.train(out, *BEST, faults=[find], evaluated=True, resume=True)
    finished(done)
    check(weights(out / "model_best.pth") == best, "model_best.pth was written over by a worse one")
    last = max(lab.good_checkpoints(out)) + 1
    check(last == 5, f"stopped after {last} of {ITERATIONS} iterations; without the kill it would be after 5")
    return "survived"


# --- 9 ----------------------------------------------------------------------------------------------------------


def says(done, *patterns: str) -> str:
    """Check that a command succeeded and that a line of its output matches one of the patterns."""
    finished(done)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "Command line arguments" not in line]
    found = [line for line in lines if len(line) < LINE and any(re.search(p, line, re.IGNORECASE) for p in patterns)]
    check(found, f"exit code 0, and not said: no line matches {patterns[0]!r}")
    return f"survived, said: {found[0].strip()}"


@case(9, "batch 2, then 4")
def other_batch(lab: Lab) -> str:
    out = lab.copy(lab.shared.interrupted(lab.stock))
    return says(lab.train(out, "SOLVER.IMS_PER_BATCH", 4, resume=True), r"SOLVER\.IMS_PER_BATCH\b.*\b2\b.*\b4\b")


@case(9, "another learning rate")
def other_rate(lab: Lab) -> str:
    out = lab.copy(lab.shared.interrupted(lab.stock))
    return says(lab.train(out, "SOLVER.BASE_LR", 0.01, resume=True), r"SOLVER\.BASE_LR\b.*0\.02.*0\.01")


@case(9, "one process, then two")
def other_world(lab: Lab) -> str:
    out = lab.copy(lab.shared.interrupted(lab.stock))
    first, second = lab.ranks(out, resume=True)
    finished(second)
    return says(first, r"(process|world|rank|GPU).*\b1\b.*\b2\b", r"(process|world|rank|GPU).*\bone\b.*\btwo\b")


@case(9, "a schedule that two processes make too short")
def short_schedule(lab: Lab) -> str:
    out = lab.copy(lab.shared.interrupted(lab.stock))
    before = pth(contents(out))
    done = lab.ranks(out, "SOLVER.REFERENCE_WORLD_SIZE", 1, resume=True)
    if done[0].returncode:
        return named(done[0])
    check(pth(contents(out)).items() >= before.items(), "a checkpoint was changed")
    return says(done[0], r"nothing (is )?(left )?to train", "already (been )?trained", "schedule is over")


# --- 10 ---------------------------------------------------------------------------------------------------------


@case(10, "a finished run")
def finished_run(lab: Lab) -> str:
    out = lab.copy(lab.shared.reference(lab.stock))
    before = pth(contents(out))
    done = lab.train(out, resume=True)
    if done.returncode:
        return named(done)
    check(pth(contents(out)) == before, "a checkpoint was changed")
    return says(done, r"nothing (is )?(left )?to train", "already (been )?trained", "schedule is over")


@case(10, "nothing there")
def nothing_to_resume(lab: Lab) -> str:
    out = lab.out()
    done = lab.train(out, resume=True)
    if done.returncode:
        return named(done)
    lab.equal(out, done)
    return says(done, "no checkpoint")


@case(10, "nothing there, --eval-only")
def nothing_to_evaluate(lab: Lab) -> str:
    return named(lab.evaluate(lab.out()), "--resume", "checkpoint", "weights")


@case(10, "MAX_ITER below the iterations done", stock=False)
def fewer_iterations(lab: Lab) -> str:
    out = lab.copy(lab.shared.reference(lab.stock, evaluated=True))
    done = lab.train(out, "SOLVER.MAX_ITER", 3, resume=True, evaluated=True)
    if done.returncode:
        return named(done)
    records = [json.loads(file.read_text()) for file in (out / "records").rglob("*.json")]
    wrong = [r["iteration"] for r in records if r["iteration"] != ITERATIONS]
    check(not wrong, f"a record gives iteration {wrong} for weights of iteration {ITERATIONS}")
    return says(done, r"nothing (is )?(left )?to train", "already (been )?trained", "schedule is over")


# --- 11 and 12 --------------------------------------------------------------------------------------------------


def all_finite(out: Path) -> bool:
    """Whether all tensors of all checkpoints in a folder are finite."""
    states = [torch.load(file, weights_only=True, mmap=True)["model"] for file in out.glob("model_*.pth")]
    return all(t.isfinite().all() for state in states for t in state.values() if t.is_floating_point())


def bad_step(lab: Lab, out: Path, done, number: int | None, *things: str) -> str:
    """Check a run with NaN in an iteration: named before the step, with no checkpoint and no record of it.

    Args:
        number: the iteration; None if it is not known.
    """
    check(all_finite(out), "a checkpoint has NaN")
    sentence = named(done, *things)
    late = [i for i in lab.good_checkpoints(out) if number is not None and i >= number]
    check(not late, f"a checkpoint of iteration {late} was written")
    records = [file.name for file in (out / "records").rglob("*.json")] if (out / "records").exists() else []
    check(not [n for n in records if str(ITERATIONS).zfill(7) in n], "the failed run was evaluated and recorded")
    for thing in ("model_000000", ".png") if number is not None else ():
        check(
            thing in sentence, f"the sentence names no {'image' if 'png' in thing else 'good checkpoint'}: {sentence}"
        )
    return sentence


@case(11, "NaN", NAN, 4)
@case(11, "infinity", INF, 4)
@case(11, "in the last iteration", NAN, ITERATIONS - 1)
@case(11, "in an iteration whose metrics are not written", NAN, 3)
def bad_loss(lab: Lab, value: float, number: int) -> str:
    out = lab.out()
    fault = (inject.at_iteration, number, inject.spoil_loss, value)
    done = lab.train(out, faults=[fault], evaluated=number == ITERATIONS - 1)
    return bad_step(lab, out, done, number, "loss_box_reg")


@case(11, "with EMA, bfloat16 and accumulation", stock=False)
def bad_loss_with_options(lab: Lab) -> str:
    out = lab.out()
    options = "TRAIN.EMA.ENABLED True SOLVER.AMP.ENABLED True TRAIN.ACCUMULATE 2".split()
    done = lab.train(out, *options, faults=[(inject.at_iteration, 4, inject.spoil_loss, NAN)])
    return bad_step(lab, out, done, 4, "loss_box_reg")


@case(11, "on the second of two ranks", inject.spoil_loss, NAN)
@case(12, "on the second of two ranks", inject.spoil_gradient)
def bad_on_a_rank(lab: Lab, action, *arguments: object) -> str:
    out = lab.out()
    first, second = lab.ranks(out, faults_of={1: [(inject.at_iteration, 4, action, *arguments)]})
    check(first.returncode not in (0, None), f"rank 0 ended with {first.returncode}")
    no_traceback(first)
    done = second if "error: " in second.stderr else first
    return bad_step(lab, out, done, 4)


@case(11, "of a learning rate of 1e6")
def huge_rate(lab: Lab) -> str:
    out = lab.out()
    done = lab.train(out, "SOLVER.BASE_LR", 1e6, "SOLVER.WARMUP_ITERS", 0, "SOLVER.CLIP_GRADIENTS.ENABLED", False)
    return bad_step(lab, out, done, None)


@case(11, "of a learning rate of NaN in a config file", ".nan", stock=False)
@case(11, "of a learning rate of infinity in a config file", ".inf", stock=False)
def rate_not_finite(lab: Lab, value: str) -> str:
    config = lab.folder / "own.yaml"
    config.write_text(f"_BASE_: {config_dir() / 'quickstart_R18_FPN_gn_scratch.yaml'}\nSOLVER:\n  BASE_LR: {value}\n")
    return named(lab.train(lab.out(), flags=("--config", config)), "BASE_LR")


@case(11, "skipped on request", stock=False)
def skip_bad_loss(lab: Lab) -> str:
    key = next((key for key in sorted(known_keys()) if "SKIP" in key and key.startswith(("TRAIN.", "SOLVER."))), "")
    check(key, "no key allows to skip a batch")
    out = lab.out()
    done = lab.train(out, key, 1, faults=[(inject.at_iteration, 3, inject.spoil_loss, NAN)])
    finished(done)
    check(all_finite(out), "a checkpoint has NaN")
    return says(done, r"skip.*\.png", r"\.png.*skip")


@case(12, "in iteration 2", 2)
@case(12, "in iteration 4", 4)
@case(12, "in the last iteration", ITERATIONS - 1)
def bad_gradient(lab: Lab, number: int) -> str:
    out = lab.out()
    fault = (inject.at_iteration, number, inject.spoil_gradient)
    done = lab.train(out, faults=[fault], evaluated=number == ITERATIONS - 1)
    return bad_step(lab, out, done, number)


@case(12, "with clipped gradients")
def clipped_gradient(lab: Lab) -> str:
    out = lab.out()
    fault = (inject.at_iteration, 4, inject.spoil_gradient)
    done = lab.train(out, "SOLVER.CLIP_GRADIENTS.ENABLED", True, faults=[fault])
    return bad_step(lab, out, done, 4)
