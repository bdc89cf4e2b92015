"""Progress bar for training on a terminal."""

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

_MIN_BAR_WIDTH = 10  # characters; values that do not fit beside the bar are left out


def on_terminal() -> bool:
    """Return whether standard output is a terminal that can move its cursor, outside of CI jobs."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


class ProgressBar(EventWriter):
    """Bar with iterations, time left, images per second, losses, learning rate and memory.

    Losses are medians over 20 iterations. ``write`` must be called after each iteration. While the
    bar is shown, log lines are printed above it, and the lines of detectron2's CommonMetricPrinter,
    which show the same values, are only written to log.txt.

    Args:
        max_iter: number of iterations of the training.
        images_per_iteration: number of images per iteration of all processes.
    """

    def __init__(self, max_iter: int, images_per_iteration: int):
        self._max_iter, self._images = max_iter, images_per_iteration
        self._bar: tqdm | None = None
        self._last_write = -1
        self._logging = contextlib.ExitStack()
        metric_logger = CommonMetricPrinter(max_iter).logger.name
        self._hide_metric_lines = lambda record: record.name != metric_logger

    def write(self) -> None:
        """Show the progress after an iteration."""
        storage = get_event_storage()
        if not self._last_write < storage.iter < self._max_iter:
            return  # detectron2 calls write once more after the last iteration
        self._last_write = storage.iter
        done = storage.iter + 1
        is_new = self._bar is None
        bar = self._bar = self._bar or self._create_bar(done)
        bar.ncols = shutil.get_terminal_size().columns - 1  # a full line would wrap in some terminals
        room = bar.ncols - len(f"{self._max_iter}/{self._max_iter} || ") - _MIN_BAR_WIDTH
        bar.set_description_str(_join_fitting(self._values(storage), room), refresh=is_new)
        bar.update(done - bar.n)
        if done == self._max_iter:
            self.hide(leave=True)

    def hide(self, leave: bool = False) -> None:
        """Remove the bar, for example before an evaluation that prints. The next write shows it again.

        Args:
            leave: whether the line of the bar stays on the terminal.
        """
        if self._bar is not None:
            self._bar.leave = leave
            self._bar.close()
            self._bar = None
        self._logging.close()

    def close(self) -> None:
        """End the bar, and show the lines of detectron2's CommonMetricPrinter again."""
        self.hide(leave=True)
        for handler in _terminal_handlers():
            handler.removeFilter(self._hide_metric_lines)

    def _create_bar(self, done: int) -> tqdm:
        for handler in _terminal_handlers():
            handler.addFilter(self._hide_metric_lines)
        self._logging.enter_context(logging_redirect_tqdm(_loggers_with_terminal()))
        for handler in _terminal_handlers():  # older versions of tqdm drop the filters
            handler.addFilter(self._hide_metric_lines)
        # tqdm shows nothing if the terminal reports 0 rows, which happens in containers; shutil
        # returns 24 then.
        rows = shutil.get_terminal_size().lines
        return tqdm(
            total=self._max_iter,
            initial=done,
            bar_format="{n_fmt}/{total_fmt} |{bar}| {desc}",
            file=sys.stdout,
            nrows=rows,
            delay=1e-9,  # so that the bar is not shown before it has a description
        )

    def _values(self, storage: EventStorage) -> list[str]:
        """Return the values to show, the most important first."""
        losses = {k: h.median(storage.count_samples(k, 20)) for k, h in storage.histories().items() if "loss" in k}
        values = []
        if "time" in storage.histories():  # detectron2's IterationTimer does not time the first iterations
            seconds = storage.history("time").median(1000)
            left = datetime.timedelta(seconds=int(seconds * (self._max_iter - storage.iter - 1)))
            recent = storage.history("time").median(20)
            values += [f"ETA {left}", f"{self._images / max(recent, 1e-9):.1f} img/s"]
        if "total_loss" in losses:
            values.append(f"loss {losses.pop('total_loss'):.3f}")
        if "lr" in storage.histories():
            values.append(f"lr {storage.history('lr').latest():.2g}")
        values += [_peak_memory()] + [f"{name.removeprefix('loss_')} {value:.3f}" for name, value in losses.items()]
        return [value for value in values if value]


def _join_fitting(values: list[str], room: int) -> str:
    """Join the first values, as many as fit into ``room`` characters but at least one."""
    text = values[0] if values else ""
    for value in values[1:]:
        if len(text) + 2 + len(value) > room:
            break
        text += f"  {value}"
    return text


def _peak_memory() -> str:
    """Return the peak memory so far: of the GPU if there is one, otherwise of this process."""
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GB GPU"
    if resource is None:
        return ""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS reports bytes, Linux KiB
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GB RAM"


def _loggers_with_terminal() -> list[logging.Logger]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    return [log for log in loggers if isinstance(log, logging.Logger) and any(map(_is_terminal, log.handlers))]


def _terminal_handlers() -> list[logging.Handler]:
    return [handler for log in _loggers_with_terminal() for handler in log.handlers if _is_terminal(handler)]


def _is_terminal(handler: logging.Handler) -> bool:
    return getattr(handler, "stream", None) in (sys.stdout, sys.stderr)
