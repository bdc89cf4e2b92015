"""Things timed in turn, A B C A B C ..., so that what else the machine does meets all of them alike."""

import dataclasses
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
from tqdm import tqdm

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is timed, and what is done before, outside of the time.

    Between subjects of different ``kind`` the process changes (its memory does): the next one runs once more, untimed.
    """

    name: str
    run: Callable[[], object]
    before: Callable[[], object] = lambda: None
    kind: str = ""


def interleave(
    subjects: Sequence[Subject],
    repeats: int,
    timed: Callable[[Callable[[], object]], T],
    warmup: int = 1,
    what: str = "",
) -> dict[str, list[T]]:
    """Time each subject once a round, those of a kind together. Garbage is collected before, and not while, one runs.

    Progress is on stderr.

    Args:
        timed: runs what it is given, and returns what is kept of it (:func:`stopwatch`).
        warmup: rounds that are left out.

    Returns:
        {name of a subject: one value a round}.
    """
    values: dict[str, list[T]] = {subject.name: [] for subject in subjects}
    turns = sorted(subjects, key=lambda subject: [s.kind for s in subjects].index(subject.kind))
    kind = turns[0].kind if turns else ""
    with tqdm(total=(warmup + repeats) * len(turns), desc=what, file=sys.stderr, mininterval=1) as bar:
        for number in range(warmup + repeats):
            for subject in turns:
                bar.set_postfix_str(subject.name, refresh=False)
                if subject.kind != kind:
                    _one(subject, timed)
                kind = subject.kind
                value = _one(subject, timed)
                if number >= warmup:
                    values[subject.name].append(value)
                bar.update()
    return values


def _one(subject: Subject, timed: Callable[[Callable[[], object]], T]) -> T:
    subject.before()
    gc.collect()
    gc.disable()
    try:
        return timed(subject.run)
    finally:
        gc.enable()


def stopwatch(device: str, least: float = 0.0) -> Callable[[Callable[[], object]], float]:
    """Seconds of a call: by the clock, or on CUDA by its events, between two synchronisations.

    Args:
        least: what takes less is called as often as fills so many seconds, and the mean is taken.
    """

    def timed(run: Callable[[], object]) -> float:
        seconds = measure(run, 1)
        number = int(least / max(seconds, 1e-9))
        return measure(run, number) if number > 1 else seconds

    measure = _by_events if device.startswith("cuda") else _by_clock
    return timed


def its_own_seconds(run: Callable[[], object]) -> dict[str, float]:
    """For a subject that returns the seconds of each of its parts."""
    return cast(dict[str, float], run())


def _by_clock(run: Callable[[], object], number: int) -> float:
    begun = time.perf_counter()
    for _ in range(number):
        run()
    return (time.perf_counter() - begun) / number


def _by_events(run: Callable[[], object], number: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(number):
        run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000 / number


def seconds(values: Sequence[float]) -> dict:
    """{"seconds": the median, "spread": [least, most]}."""
    return {"seconds": statistics.median(values), "spread": [min(values), max(values)]}


def ratio(stock: Sequence[float], ours: Sequence[float]) -> dict:
    """{"ratio": the median of each round's stock / ours, "spread": [least, most]}: above 1 where ours is faster."""
    rounds = [a / b for a, b in zip(stock, ours, strict=True)]
    return {"ratio": statistics.median(rounds), "spread": [min(rounds), max(rounds)]}
