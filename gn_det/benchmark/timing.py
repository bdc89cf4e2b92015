"""Time several calls in turn (A B C A B C ...), so that background load affects all of them equally."""

import contextlib
import dataclasses
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, cast

import torch
from tqdm import tqdm

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class TimedCall:
    """A call to time, with the untimed preparation that precedes each run.

    Calls of different ``group`` need different process settings (such as those of the memory allocator).
    After a change of group, :func:`interleave` runs the next call once more without keeping the time.
    """

    name: str
    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None
    group: str = ""


def interleave(
    calls: Sequence[TimedCall],
    repeats: int,
    measure: Callable[[Callable[[], object]], T],
    warmup: int = 1,
    description: str = "",
) -> dict[str, list[T]]:
    """Measure each call once per round, with the calls of one group next to each other.

    Garbage is collected before each call, and never while a call runs. A progress bar is shown on stderr.

    Args:
        measure: runs a call and returns the value to keep. :func:`stopwatch` returns such a function.
        warmup: number of rounds at the start whose values are not kept.
        description: title of the progress bar.

    Returns:
        {name of a call: list of ``repeats`` values}.
    """
    values: dict[str, list[T]] = {call.name: [] for call in calls}
    order = sorted(calls, key=lambda call: [c.group for c in calls].index(call.group))
    group = order[0].group if order else ""
    with tqdm(total=(warmup + repeats) * len(order), desc=description, file=sys.stderr, mininterval=1) as bar:
        for number in range(warmup + repeats):
            for call in order:
                bar.set_postfix_str(call.name, refresh=False)
                if call.group != group:
                    _measure_once(call, measure)
                group = call.group
                value = _measure_once(call, measure)
                if number >= warmup:
                    values[call.name].append(value)
                bar.update()
    return values


@contextlib.contextmanager
def frozen_garbage() -> Iterator[None]:
    """Exclude all existing objects from garbage collection, which would disturb the timings."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _measure_once(call: TimedCall, measure: Callable[[Callable[[], object]], T]) -> T:
    call.prepare()
    gc.collect()
    gc.disable()
    try:
        return measure(call.run)
    finally:
        gc.enable()


def stopwatch(device: str, min_seconds: float = 0.0) -> Callable[[Callable[[], object]], float]:
    """Return a function that measures the seconds of a call.

    The time comes from the CPU's clock, or on CUDA from two events, with a synchronization before and after.

    Args:
        min_seconds: a call that takes less is repeated until this time is filled, and the mean is returned.
    """

    def measure(run: Callable[[], object]) -> float:
        seconds = mean_seconds(run, 1)
        count = int(min_seconds / max(seconds, 1e-9))
        return mean_seconds(run, count) if count > 1 else seconds

    mean_seconds = _mean_by_events if device.startswith("cuda") else _mean_by_clock
    return measure


def self_timed(run: Callable[[], object]) -> dict[str, float]:
    """Run a call that returns its own {phase: seconds}, and return that result."""
    return cast(dict[str, float], run())


def _mean_by_clock(run: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - start) / count


def _mean_by_events(run: Callable[[], object], count: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(count):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / count


def median_seconds(values: Sequence[float]) -> dict:
    """Return {"seconds": the median, "spread": [minimum, maximum]}."""
    return {"seconds": statistics.median(values), "spread": [min(values), max(values)]}


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict:
    """Divide two lists of times round by round.

    Returns:
        {"ratio": the median of the rounds' quotients, "spread": [minimum, maximum]}.
    """
    rounds = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return {"ratio": statistics.median(rounds), "spread": [min(rounds), max(rounds)]}
