"""Go on with the training when its curves and logs cannot be written, for example because the disk is full."""

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter, get_event_storage

logger = logging.getLogger(__name__)


def tolerant(writer: EventWriter, folder: str | Path) -> EventWriter:
    """Return a writer like one of ``detectron2.engine.default_writers``, which goes on if the disk is full.

    Args:
        folder: ``OUTPUT_DIR``.
    """
    if isinstance(writer, JSONWriter):
        writer.close()
        return MetricsWriter(str(Path(folder, "metrics.json")))
    return EventsWriter(str(folder)) if isinstance(writer, TensorboardXWriter) else writer


class MetricsWriter(JSONWriter):
    """JSONWriter that warns once if it cannot write, keeps all complete lines, and tries again at the next write."""

    _last_write: int
    _file_handle: IO[str]

    def __init__(self, path: str):
        super().__init__(path)
        self._path, self._size, self._warned = path, os.path.getsize(path), False

    def write(self) -> None:
        """Append the values that are new since the last write."""
        last = self._last_write
        try:
            if self._file_handle.closed:
                self._file_handle = open(self._path, "a")  # noqa: SIM115
            super().write()
            self._size = os.path.getsize(self._path)
        except OSError as error:
            self._last_write = last
            with contextlib.suppress(OSError):  # it tries to write the rest, and closes the file in any case
                self._file_handle.close()
            with contextlib.suppress(OSError):
                os.truncate(self._path, self._size)
            self._warn(error)

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            super().close()

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            logger.warning(
                f"{self._path} cannot be written ({error.strerror}); the training goes on without these values."
            )
        self._warned = True


class EventsWriter(TensorboardXWriter):
    """TensorboardXWriter that warns once if it cannot write, and then writes nothing more."""

    def __init__(self, folder: str):
        super().__init__(folder)
        self._folder, self._failed = folder, False
        self._hook = threading.excepthook
        threading.excepthook = self._handle_thread_error

    def write(self) -> None:
        """Write the values and pictures that are new since the last write."""
        if not self._failed:
            with self._giving_up():
                super().write()
        if self._failed:
            get_event_storage().clear_images()
            get_event_storage().clear_histograms()

    def close(self) -> None:
        """Close the file."""
        if not self._failed:
            with self._giving_up():
                super().close()
        threading.excepthook = self._hook

    def _handle_thread_error(self, error: threading.ExceptHookArgs) -> None:
        """Print no traceback for the thread of TensorBoard: the next write raises its error again."""
        if not (isinstance(error.exc_value, OSError) and type(error.thread).__module__.startswith("tensorboard")):
            self._hook(error)

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failed = True
            logger.warning(
                f"The TensorBoard events in {self._folder} cannot be written ({error.strerror}); the training goes on "
                "without them."
            )


def tolerate_log_errors() -> None:
    """Let the loggers warn once if a log or the output cannot be written, instead of printing a traceback per line."""
    warned: set[str] = set()  # names of the files; several loggers write to one log
    for log in [logging.root, *logging.root.manager.loggerDict.values()]:
        for handler in getattr(log, "handlers", []):
            if isinstance(handler, logging.StreamHandler):
                handler.handleError = _LogError(handler, warned)  # type: ignore[method-assign]


class _LogError:
    """Print one warning for all errors of a handler."""

    def __init__(self, handler: logging.StreamHandler, warned: set[str]):
        self._name, self._usual, self._warned = getattr(handler.stream, "name", "log"), handler.handleError, warned

    def __call__(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            self._usual(record)
        elif self._name not in self._warned:
            self._warned.add(self._name)
            with contextlib.suppress(OSError):
                print(f"warning: {self._name} cannot be written ({error.strerror}).", file=sys.stderr)
