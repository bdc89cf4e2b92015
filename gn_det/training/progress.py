"""A progress bar for a person at a terminal."""

import contextlib
import datetime
import logging
import os
import shutil
import sys

import torch
from detectron2.utils.events import CommonMetricPrinter, EventStorage, EventWriter, get_event_storage
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]

_SHORTEST_BAR = 10  # characters; what does not fit beside it is left out


def on_terminal() -> bool:
    """Whether a person is looking: standard output is a terminal that can move its cursor, and not one of CI's."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


class ProgressBar(EventWriter):
    """Iterations done, time left, images a second, losses (medians of 20 iterations), learning rate and memory in use.

    To be written each iteration. While the bar stands, log lines go above it, and detectron2's own lines on the same
    numbers, which log.txt keeps, do not appear beside it.
    """

    def __init__(self, max_iter: int, images_per_iteration: int):
        self._max_iter, self._images = max_iter, images_per_iteration
        self._bar: tqdm | None = None
        self._last_write = -1
        self._logging = contextlib.ExitStack()
        lines = CommonMetricPrinter(max_iter).logger.name
        self._not_lines = lambda record: record.name != lines

    def write(self) -> None:
        storage = get_event_storage()
        if not self._last_write < storage.iter < self._max_iter:
            return  # detectron2 writes once more after the last iteration
        self._last_write = storage.iter
        done = storage.iter + 1
        appears = self._bar is None
        bar = self._bar = self._bar or self._make(done)
        bar.ncols = shutil.get_terminal_size().columns - 1  # a full line would wrap in some terminals
        room = bar.ncols - len(f"{self._max_iter}/{self._max_iter} || ") - _SHORTEST_BAR
        bar.set_description_str(_fitting(self._facts(storage), room), refresh=appears)
        bar.update(done - bar.n)
        if done == self._max_iter:
            self.hide(leave=True)

    def hide(self, leave: bool = False) -> None:
        """Take the bar away, for an evaluation with output of its own; the next write brings it back."""
        if self._bar is not None:
            self._bar.leave = leave
            self._bar.close()
            self._bar = None
        self._logging.close()

    def close(self) -> None:
        self.hide(leave=True)
        for handler in _terminal_handlers():
            handler.removeFilter(self._not_lines)

    def _make(self, done: int) -> tqdm:
        for handler in _terminal_handlers():
            handler.addFilter(self._not_lines)
        self._logging.enter_context(logging_redirect_tqdm(_loggers_with_terminal()))
        for handler in _terminal_handlers():  # older versions of tqdm drop the filters
            handler.addFilter(self._not_lines)
        form, lines = "{n_fmt}/{total_fmt} |{bar}| {desc}", shutil.get_terminal_size().lines
        # nrows: tqdm shows nothing where a container's terminal says that it has 0. delay: not before there are facts.
        return tqdm(total=self._max_iter, initial=done, bar_format=form, file=sys.stdout, nrows=lines, delay=1e-9)

    def _facts(self, storage: EventStorage) -> list[str]:
        """The most important first."""
        losses = {k: h.median(storage.count_samples(k, 20)) for k, h in storage.histories().items() if "loss" in k}
        facts = []
        if "time" in storage.histories():  # not in the first iterations, which IterationTimer leaves out
            seconds = storage.history("time").median(1000)
            left = datetime.timedelta(seconds=int(seconds * (self._max_iter - storage.iter - 1)))
            recent = storage.history("time").median(20)
            facts += [f"ETA {left}", f"{self._images / max(recent, 1e-9):.1f} img/s"]
        if "total_loss" in losses:
            facts.append(f"loss {losses.pop('total_loss'):.3f}")
        if "lr" in storage.histories():
            facts.append(f"lr {storage.history('lr').latest():.2g}")
        facts += [_memory()] + [f"{name.removeprefix('loss_')} {value:.3f}" for name, value in losses.items()]
        return [fact for fact in facts if fact]


def _fitting(facts: list[str], room: int) -> str:
    text = facts[0] if facts else ""
    for fact in facts[1:]:
        if len(text) + 2 + len(fact) > room:
            break
        text += f"  {fact}"
    return text


def _memory() -> str:
    """The most that was in use: of the GPU's memory, or of this process's."""
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GB GPU"
    if resource is None:
        return ""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GB RAM"


def _loggers_with_terminal() -> list[logging.Logger]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    return [log for log in loggers if isinstance(log, logging.Logger) and any(map(_is_terminal, log.handlers))]


def _terminal_handlers() -> list[logging.Handler]:
    return [handler for log in _loggers_with_terminal() for handler in log.handlers if _is_terminal(handler)]


def _is_terminal(handler: logging.Handler) -> bool:
    return getattr(handler, "stream", None) in (sys.stdout, sys.stderr)
