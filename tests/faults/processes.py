"""Rows 14 to 16: signals, ranks and data workers that end or hang."""

import os
import signal
import subprocess
import time
from pathlib import Path

from . import inject
from .frame import case, check, finished, named, no_traceback, row
from .lab import EVALUATED, ITERATIONS, Lab
from .look import children, known_keys, wait_until, weights

row(14, "SIGTERM, SIGINT, SIGUSR1 or SIGHUP", "the step ends, a checkpoint is saved, the exit code says which signal")
row(15, "a rank dies, fails or hangs", "all ranks end within the time limit, with a sentence")
row(16, "a data worker dies or hangs", "the run ends within the time limit, with a sentence")

LONG = ("SOLVER.MAX_ITER", 2000)
PERIOD = 10  # iterations between the checkpoints of a long run
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
PATIENCE = 45  # seconds in which a run with a limit of SHORT seconds has to end; stock detectron2 has no limit
STOCK_PATIENCE = 10
SHORT = 6  # seconds, the limit that the cases set for a stalled run


def stopped(done: subprocess.CompletedProcess, number: int) -> str:
    """Check that a signal ended a command cleanly, with an exit code of its own."""
    check(done.returncode is not None, "still running at the time limit")
    no_traceback(done)
    check(done.returncode != -number, "died at once, nothing was saved")
    check(done.returncode != 0, "exit code 0")
    return f"survived: exit code {done.returncode}"


def saved(lab: Lab, out: Path, iteration: int) -> None:
    """Check that a run has a checkpoint of an iteration, or of a later one."""
    found = lab.good_checkpoints(out)
    check(found and found[-1] >= iteration, f"no checkpoint of iteration {iteration}: {found}")


# --- 14 ---------------------------------------------------------------------------------------------------------


@case(14, "SIGTERM in training", signal.SIGTERM)
@case(14, "SIGINT in training", signal.SIGINT)
@case(14, "SIGUSR1 in training", signal.SIGUSR1)
@case(14, "SIGHUP in training", signal.SIGHUP)
def signal_in_training(lab: Lab, number: int) -> str:
    return interrupt(lab, number)


@case(14, "Ctrl-C, with a data worker", signal.SIGINT, True)
@case(14, "SIGTERM to the process group, with a data worker", signal.SIGTERM, True)
def signal_to_group(lab: Lab, number: int, group: bool) -> str:
    return interrupt(lab, number, "DATALOADER.NUM_WORKERS", 1, group=group)


def interrupt(lab: Lab, number: int, *options: object, group: bool = False) -> str:
    """Send a signal in iteration 4, and resume."""
    out = lab.out()
    done = lab.train(out, *options, faults=[(inject.at_iteration, 4, inject.send, number, 1, group)])
    if done.returncode == 0 and number == signal.SIGUSR1:  # saved, and went on
        saved(lab, out, 4)
        return lab.equal(out, done, ITERATIONS, *options)
    how = stopped(done, number)
    saved(lab, out, 4)
    lab.equal(out, lab.train(out, *options, resume=True), ITERATIONS, *options)
    return how


@case(14, "SIGTERM in an evaluation during training")
def signal_in_evaluation(lab: Lab) -> str:
    out = lab.out()
    period = (*EVALUATED, "SOLVER.CHECKPOINT_PERIOD", 100)
    fault = (inject.at_evaluation, inject.send, signal.SIGTERM)
    how = stopped(lab.train(out, *period, evaluated=True, faults=[fault]), signal.SIGTERM)
    saved(lab, out, 1)
    finished(lab.train(out, *period, evaluated=True, resume=True))
    same = weights(out / "model_final.pth") == weights(lab.shared.reference(lab.stock) / "model_final.pth")
    check(same, "the final weights differ")
    return how


@case(14, "SIGTERM in --eval-only", signal.SIGTERM)
@case(14, "SIGINT in --eval-only", signal.SIGINT)
def signal_in_eval_only(lab: Lab, number: int) -> str:
    out = lab.copy(lab.shared.reference(lab.stock))
    done = lab.evaluate(out, faults=[(inject.at_evaluation, inject.send, number)])
    how = stopped(done, number)
    check(not list(out.rglob("records/*.json")), "a cut evaluation was recorded")
    return how


@case(14, "a second SIGTERM in a step that hangs", signal.SIGTERM)
@case(14, "a second SIGINT in a step that hangs", signal.SIGINT)
def second_signal(lab: Lab, number: int) -> str:
    out, begin = lab.copy(lab.shared.interrupted(lab.stock)), time.monotonic()
    done = lab.train(out, resume=True, faults=[(inject.at_iteration, 4, inject.send_twice_and_hang, number)])
    check(time.monotonic() - begin < 30, "the second signal did not end it")
    no_traceback(done)
    check(done.returncode not in (0, None), f"exit code {done.returncode}")
    lab.equal(out, lab.train(out, resume=True))
    return f"survived: exit code {done.returncode}"


@case(14, "SIGTERM to one of two ranks", signal.SIGTERM)
def signal_to_one_rank(lab: Lab, number: int) -> str:
    out, calm = lab.out(), lab.out()
    both = lab.ranks(out, faults_of={1: [(inject.at_iteration, 4, inject.send, number)]})
    hows = [stopped(done, number) for done in both]
    saved(lab, out, 4)
    for folder, resume in ((out, True), (calm, False)):
        for done in lab.ranks(folder, resume=resume):
            finished(done)
    check(weights(out / "model_final.pth") == weights(calm / "model_final.pth"), "the final weights differ")
    return hows[0]


@case(14, "SIGTERM to the launcher of two ranks alone", signal.SIGTERM)
@case(14, "SIGINT to the launcher of two ranks alone", signal.SIGINT)
def signal_to_launcher(lab: Lab, number: int) -> str:
    out = lab.out()
    fork, _ = two_ranks(lab, out)
    before = max(lab.good_checkpoints(out))
    fork.send(number)
    how = stopped(fork.wait(patience(lab)), number)
    check(not group_left(fork.pid), "processes are left behind")
    saved(lab, out, before + 1)
    return how


def two_ranks(lab: Lab, out: Path, *options: object) -> tuple:
    """Start a long training with ``--num-gpus 2``; return it and its two ranks when it has a checkpoint."""
    flags = ("--num-gpus", 2)
    fork = lab.start(out, *LONG, "SOLVER.CHECKPOINT_PERIOD", PERIOD, *options, flags=flags)
    try:
        wait_until(lambda: lab.good_checkpoints(out), fork)
    except BaseException:
        fork.wait(0)
        raise
    return fork, spawned(fork.pid)


def spawned(pid: int) -> list[int]:
    """Return the processes that multiprocessing has spawned for a process."""
    found = [int(word) for file in Path(f"/proc/{pid}/task").glob("*/children") for word in file.read_text().split()]
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def group_left(pid: int) -> bool:
    """Whether a process group still has processes a few seconds later."""
    for _ in range(50):
        try:
            os.killpg(pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        time.sleep(0.1)
    os.killpg(pid, signal.SIGKILL)
    return True


# --- 15 ---------------------------------------------------------------------------------------------------------


def short_limit(lab: Lab) -> list:
    """Return the options and values that make gn_det end a stalled run after SHORT seconds."""
    if lab.stock:
        return []
    keys = [
        key for key in sorted(known_keys()) if any(w in key for w in ("STALL", "TIMEOUT")) and key.startswith("TRAIN.")
    ]
    check(keys, "no key limits the time of a stalled run")
    return [word for key in keys for word in (key, SHORT / 60 if "MINUTES" in key else SHORT)]


def patience(lab: Lab) -> float:
    """Return how long to wait for the end of a run, in seconds."""
    return STOCK_PATIENCE if lab.stock else PATIENCE


@case(15, "SIGKILL of the second rank", signal.SIGKILL, 1)
@case(15, "SIGKILL of the first rank", signal.SIGKILL, 0)
@case(15, "SIGSTOP of the second rank", signal.SIGSTOP, 1)
def rank_ends(lab: Lab, number: int, rank: int) -> str:
    out = lab.out()
    fork, ranks = two_ranks(lab, out, *(short_limit(lab) if number == signal.SIGSTOP else []))
    before = lab.good_checkpoints(out)
    os.kill(ranks[rank], number)
    lab.kills += number == signal.SIGKILL
    sentence = named(fork.wait(patience(lab)), "rank", "process")
    check(not group_left(fork.pid), "processes are left behind")
    check(set(before) <= set(lab.good_checkpoints(out)), "a checkpoint is lost")
    return sentence


@case(15, "an error in the second rank")
def rank_fails(lab: Lab) -> str:
    out = lab.out()
    first, second = lab.ranks(out, faults_of={1: [(inject.at_iteration, 4, inject.fail)]})
    for rank, done in enumerate((first, second)):
        check(done.returncode not in (0, None), f"rank {rank} ended with {done.returncode}")
    check("fault in this rank" in second.stderr + second.stdout, "the cause is not shown")
    saved(lab, out, 3)
    return "named: the traceback of the error, as every bug has"


@case(15, "a rank that hangs in a step")
def rank_hangs(lab: Lab) -> str:
    out, begin = lab.out(), time.monotonic()
    hang = {1: [(inject.at_iteration, 4, inject.send, signal.SIGSTOP)]}
    first, second = lab.ranks(out, *short_limit(lab), faults_of=hang, wait_for=(0, patience(lab)))
    check(time.monotonic() - begin < 2 * PATIENCE, "too late")
    saved(lab, out, 3)
    return named(first, "rank", "process")


# --- 16 ---------------------------------------------------------------------------------------------------------


@case(16, "SIGKILL in training", signal.SIGKILL)
@case(16, "SIGSTOP in training", signal.SIGSTOP)
def worker_in_training(lab: Lab, number: int) -> str:
    out = lab.out()
    options = short_limit(lab) if number == signal.SIGSTOP else []
    fork = lab.start(out, *LONG, "DATALOADER.NUM_WORKERS", 1, "SOLVER.CHECKPOINT_PERIOD", PERIOD, *options)
    wait_until(lambda: lab.good_checkpoints(out), fork)
    for child in children(fork.pid):
        os.kill(child, number)
        lab.kills += number == signal.SIGKILL
    sentence = named(fork.wait(patience(lab)), "worker", "loader", "loads")
    check(not group_left(fork.pid), "processes are left behind")
    saved(lab, out, PERIOD - 1)
    return sentence


@case(16, "SIGKILL in --eval-only", signal.SIGKILL)
def worker_in_evaluation(lab: Lab, number: int) -> str:
    out = lab.copy(lab.shared.reference(lab.stock))
    fault = (inject.at_evaluation, inject.end_workers, number)
    return named(lab.evaluate(out, "DATALOADER.NUM_WORKERS", 1, faults=[fault]), "worker", "loader", "loads")
