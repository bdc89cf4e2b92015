"""End a run whose processes make no progress, and say which one is the cause."""

import contextlib
import json
import multiprocessing
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist
from detectron2.utils import comm

from .ranks import shared_store
from .signals import end_now

_EXIT_CODE = 2
_LONGEST_PERIOD = 5.0  # seconds between two looks
_LOOKS = 20  # at least this number of looks within the limit


class Stage:
    """What a process does, as a number. In an iteration, the stages follow each other in this order."""

    FREE = 0  # anything that has no time limit, such as saving a checkpoint
    LOADS = 1
    FORWARD = 2
    BACKWARD = 3
    EVALUATES = 4
    WAITS = 5


_TEXTS = {
    Stage.LOADS: "loads the images of iteration {}",
    Stage.FORWARD: "runs the forward pass of iteration {}",
    Stage.BACKWARD: "runs the backward pass of iteration {}",
    Stage.EVALUATES: "evaluates batch {}",
    Stage.WAITS: "waits for the other processes",
}


class State(NamedTuple):
    """State of a process that the others can see.

    Attributes:
        beat: increases as long as the process runs.
        changes: increases with each change of the stage.
        stage, number: what the process does, in which iteration or batch.
        name: process id and host.
    """

    beat: int
    changes: int
    stage: int
    number: int
    name: str


_now = (0, Stage.FREE, 0)  # changes, stage and number of this process


def enter(stage: int, number: int = 0) -> None:
    """Tell the watchdog what this process does from now on.

    Args:
        number: of the iteration or batch.
    """
    global _now
    _now = (_now[0] + 1, stage, number)


@contextlib.contextmanager
def watching(minutes: float) -> Iterator[None]:
    """End all processes of the run if they make no progress in a block. All processes must call it together.

    A run makes progress as long as one of its processes loads images, or ends a forward or backward pass. In stage
    ``FREE`` there is no limit, except that each process must respond.

    Args:
        minutes: limit; 0 for none.
    """
    if not minutes:
        yield
        return
    end = threading.Event()
    watchdog = _Watchdog(60 * minutes, end)
    watchdog.start()
    try:
        yield
    finally:
        end.set()
        enter(Stage.FREE)


class _Watchdog(threading.Thread):
    """Look at all processes again and again. Time while the watchdog itself is suspended does not count."""

    def __init__(self, limit: float, end: threading.Event):
        super().__init__(name="watchdog", daemon=True)
        self._limit, self._end, self._period = limit, end, min(_LONGEST_PERIOD, limit / _LOOKS)
        self._look: Callable[[], dict[int, State]] = lambda: {0: _own_state(0)}
        if store := shared_store():
            peers = _Peers(store, self._period, end)
            self._look = lambda: peers.states
            peers.start()
        self._stall = Stall(limit)

    def run(self) -> None:
        """Look until the end of the block."""
        while not self._end.wait(self._period):
            states = self._look()
            if causes := self._stall.look(states, self._period):
                _end_run(causes, states, self._limit)


class _Peers(threading.Thread):
    """Publish the state of this process and read those of the others, in a thread that may wait for the network.

    Attributes:
        states: state of each rank that is still in the block.
    """

    def __init__(self, store: dist.Store, period: float, end: threading.Event):
        super().__init__(name="peers", daemon=True)
        self._store, self._period, self._end = store, period, end
        self._keys = [f"gn_det/state/{rank}" for rank in range(comm.get_world_size())]
        self._beat = 0
        self._publish()
        comm.synchronize()
        self._read()

    def run(self) -> None:
        """Exchange states until the end of the block."""
        with contextlib.suppress(RuntimeError):  # rank 0, which holds the store, has ended
            while not self._end.wait(self._period):
                self._publish()
                self._read()
            self._store.set(self._keys[comm.get_rank()], "null")

    def _publish(self) -> None:
        self._beat += 1
        self._store.set(self._keys[comm.get_rank()], json.dumps(_own_state(self._beat)))

    def _read(self) -> None:
        values = [json.loads(text) for text in self._store.multi_get(self._keys)]
        self.states = {rank: State(*value) for rank, value in enumerate(values) if value}


def _own_state(beat: int) -> State:
    return State(beat, *_now, f"process {os.getpid()} on {socket.gethostname()}")


class Stall:
    """Find out from the states of all processes, seen one after the other, whether the run is stalled.

    Args:
        limit: seconds.
    """

    def __init__(self, limit: float):
        self._limit = limit
        self._last: dict[int, State] = {}
        self._silent: dict[int, float] = {}  # seconds in which a rank has not responded
        self._idle: dict[int, float] = {}  # seconds without a change of the stage

    def look(self, states: dict[int, State], seconds: float) -> list[int]:
        """Return the ranks that the others wait for if the run is stalled, otherwise an empty list.

        Args:
            states: state of each rank.
            seconds: since the last look.
        """
        for rank, state in states.items():
            last = self._last.get(rank)
            same_beat = last is not None and last.beat == state.beat and len(states) > 1
            same_stage = last is not None and last.changes == state.changes and state.stage != Stage.FREE
            self._silent[rank] = self._silent.get(rank, 0.0) + seconds if same_beat else 0.0
            self._idle[rank] = self._idle.get(rank, 0.0) + seconds if same_stage else 0.0
        self._last = states
        if all(self._silent[rank] >= self._limit for rank in states) and 0 in states:
            return [0]  # the store of rank 0 does not answer
        if silent := [rank for rank in states if self._silent[rank] >= self._limit]:
            return silent
        if states and all(self._idle[rank] >= self._limit for rank in states):
            return _causes(states)
        return []


def _causes(states: dict[int, State]) -> list[int]:
    """Return the ranks that are furthest behind."""
    busy = {rank: state for rank, state in states.items() if state.stage != Stage.WAITS} or states
    first = min((state.number, state.stage) for state in busy.values())
    return [rank for rank, state in busy.items() if (state.number, state.stage) == first]


def _end_run(causes: list[int], states: dict[int, State], limit: float) -> None:
    """Print the sentence in the processes that are the cause, or in the first other one, and end this process."""
    rank = comm.get_rank()
    others = [other for other in states if other not in causes]
    if rank in causes or rank == min(others, default=rank):
        print(f"error: {stall_sentence(causes, states, limit)}", file=sys.stderr, flush=True)
    end_now(_EXIT_CODE)


def stall_sentence(causes: list[int], states: dict[int, State], limit: float) -> str:
    """Return the sentence that says which processes are stalled, and where."""
    names = []
    for rank in causes:
        state = states[rank]
        name = f"rank {rank} ({state.name})" if comm.get_world_size() > 1 else state.name
        doing = _TEXTS.get(state.stage, "does not respond").format(state.number)
        names.append(f"{name} {doing}")
    workers = _stopped_workers()
    return (
        f"The run has made no progress for {limit / 60:g} minutes: {', '.join(names)}{workers}. Look for a stopped "
        "process, or a disk or network that does not answer, then continue with --resume; if nothing is wrong, raise "
        "TRAIN.STALL_MINUTES."
    )


def _stopped_workers() -> str:
    """Return a clause that names the processes which load images and are stopped (on Linux)."""
    stopped = []
    for process in multiprocessing.active_children():
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            stopped += [str(process.pid)] if state in "Tt" else []
    return f", and its worker process {', '.join(stopped)} is stopped" if stopped else ""
