"""Decisions of the watchdog on given states of the processes, and a stalled process of its own."""

import subprocess
import sys

import pytest

from gn_det.training.guards.stalls import Stage, Stall, State, stall_sentence


def states(*rows: tuple[int, int, int, int]) -> dict[int, State]:
    """Return the state of each rank; a row has beat, changes, stage and number."""
    return {rank: State(*row, f"process {rank + 10} on host") for rank, row in enumerate(rows)}


def looks(frames: list[dict[int, State]], limit: float = 3.0) -> list[list[int]]:
    stall = Stall(limit)
    return [stall.look(frame, 1.0) for frame in frames]


def test_one_process_is_stalled_if_its_stage_does_not_change():
    waiting = [states((0, 5, Stage.LOADS, 7))] * 4
    assert looks(waiting) == [[], [], [], [0]]
    assert looks([*waiting[:3], states((0, 6, Stage.FORWARD, 7)), *waiting[:2]]) == 6 * [[]]
    assert looks([states((0, 5, Stage.FREE, 0))] * 9) == 9 * [[]]


def test_the_rank_that_is_furthest_behind_is_the_cause():
    def frames(first, second):
        return [states((beat, 5, *first), (beat, 5, *second)) for beat in range(4)]

    assert looks(frames((Stage.BACKWARD, 7), (Stage.LOADS, 7)))[-1] == [1]
    assert looks(frames((Stage.LOADS, 8), (Stage.BACKWARD, 7)))[-1] == [1]
    assert looks(frames((Stage.WAITS, 7), (Stage.EVALUATES, 9)))[-1] == [1]
    assert looks(frames((Stage.BACKWARD, 7), (Stage.BACKWARD, 7)))[-1] == [0, 1]


def test_a_run_is_not_stalled_while_one_rank_works():
    evaluates = [states((beat, 5, Stage.WAITS, 0), (beat, beat, Stage.EVALUATES, beat)) for beat in range(9)]
    saves = [states((beat, 5, Stage.FREE, 0), (beat, 5, Stage.WAITS, 7)) for beat in range(9)]
    assert looks(evaluates) == looks(saves) == 9 * [[]]


def test_a_rank_that_does_not_respond_is_the_cause_in_any_stage():
    frames = [states((beat, 5, Stage.FREE, 0), (1, 5, Stage.FREE, 0)) for beat in range(4)]
    assert looks(frames) == [[], [], [], [1]]
    assert looks([states((1, 5, Stage.FREE, 0), (1, 5, Stage.FREE, 0))] * 4)[-1] == [0], "rank 0 holds the store"


def test_a_rank_that_has_ended_is_left_out():
    frames = [{0: states((beat, beat, Stage.LOADS, beat))[0]} for beat in range(9)]
    assert looks([states((0, 0, Stage.LOADS, 0), (0, 5, Stage.WAITS, 0)), *frames]) == 10 * [[]]


def test_sentence():
    sentence = stall_sentence([0], states((0, 5, Stage.LOADS, 7)), 90.0)
    assert sentence.startswith(
        "The run has made no progress for 1.5 minutes: process 10 on host loads the images of it"
    )
    assert "does not respond" in stall_sentence([0], states((0, 5, Stage.FREE, 0)), 90.0)


@pytest.mark.parametrize("stage", ["LOADS", "FREE"])
def test_a_process_that_hangs_is_ended(stage):
    program = f"""import time
from gn_det.training.guards.stalls import Stage, enter, watching
with watching(0.4 / 60):
    enter(Stage.{stage}, 3)
    time.sleep(1.5)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    hangs = stage == "LOADS"
    assert done.returncode == (2 if hangs else 0) and ("loads the images of iteration 3" in done.stderr) == hangs
