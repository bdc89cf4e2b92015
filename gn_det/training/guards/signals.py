"""End a run in an orderly way after SIGTERM, SIGINT, SIGUSR1 or SIGHUP."""

import contextlib
import functools
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)

_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")  # Windows does not have the last two
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
# A terminal, torchrun and Slurm send a signal to the processes of a run, and a launcher forwards it to the same processes.
# A signal that arrives within these seconds after the first is taken for the same one.
_SAME_SIGNAL = 2.0


class Stopped(SystemExit):
    """Ends the process after a signal, with the exit code of a shell: 128 + the number of the signal."""

    def __init__(self, number: int):
        super().__init__(128 + number)


class Interrupted(BaseException):
    """Raised where a signal ends an evaluation. Its argument is the number of the signal."""

    @property
    def number(self) -> int:
        """The number of the signal."""
        return self.args[0]


class _Listener:
    """Remember the first signal, and end the process at the second.

    Python runs its signal handlers between two instructions of the main thread, which may never come if that thread waits
    for another process. So the signals are read in a thread, from the file that Python writes their numbers to.
    """

    def __init__(self) -> None:
        self.received, self._time = 0, 0.0
        self._out, self._in = os.pipe()
        os.set_blocking(self._in, False)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    @contextlib.contextmanager
    def receiving(self) -> Iterator[None]:
        """Receive the signals of a block. The thread of the listener ends with it."""
        old_file = signal.set_wakeup_fd(self._in, warn_on_full_buffer=False)
        try:
            with handling(_do_nothing):
                yield
        finally:
            signal.set_wakeup_fd(old_file)
            os.write(self._in, b"\0")  # ends the thread

    def _listen(self) -> None:
        while number := os.read(self._out, 1)[0]:
            if number in SIGNALS:
                self._receive(number)
        os.close(self._out)
        os.close(self._in)

    def _receive(self, number: int) -> None:
        if not self.received:
            self.received, self._time = number, time.monotonic()
            name = signal.Signals(number).name
            logger.warning(f"{name}: the run stops as soon as it can; a second signal ends it at once.")
        elif time.monotonic() - self._time > _SAME_SIGNAL:
            end_now(128 + number)


_listener: _Listener | None = None


def _do_nothing(*_: object) -> None:
    """Handle a signal in Python; the thread of the listener does the work."""


@contextlib.contextmanager
def handling(handler: Callable[[int, Any], object], numbers: Iterable[int] = SIGNALS) -> Iterator[None]:
    """Handle signals by a function in a block.

    A signal that the process ignores, as SIGHUP after ``nohup``, stays ignored.
    """
    old = {number: signal.getsignal(number) for number in numbers}
    for number, before in old.items():
        if before is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Remember signals in a block instead of ending the process; see :func:`requested`.

    Has no effect outside of the main thread, where Python cannot handle signals, and within another such block.
    """
    global _listener
    if _listener or threading.current_thread() is not threading.main_thread():
        yield
        return
    _listener = _Listener()
    try:
        with _listener.receiving():
            yield
    finally:
        _listener = None


def requested() -> int:
    """Return the number of the signal that this process has received; 0 if none."""
    return _listener.received if _listener else 0


def end_now(code: int) -> None:
    """End this process and the processes that load its images, without any cleaning up."""
    for process in multiprocessing.active_children():
        process.kill()
    os._exit(code)


def ignore_signals_in_workers(loader: Iterable) -> None:
    """Let the worker processes of a data loader ignore signals of others than their parent process.

    Otherwise a signal to all processes of a run would end the workers in the middle of an iteration.

    Args:
        loader: a DataLoader, or detectron2's wrappers of one. Other loaders are left as they are.
    """
    while not isinstance(loader, DataLoader):
        if not hasattr(loader, "dataset"):
            return
        loader = loader.dataset
    loader.worker_init_fn = functools.partial(start_worker, init=loader.worker_init_fn)


def start_worker(number: int, init: Callable[[int], None] | None = None) -> None:
    """Let this worker process of a data loader ignore signals of others than its parent process.

    Args:
        number: that PyTorch gives the worker.
        init: called with it at the end.
    """
    for ignored in set(SIGNALS) - {signal.SIGTERM}:
        signal.signal(ignored, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()
    if init:
        init(number)


def _obey_parent() -> None:
    """End this worker at a SIGTERM of its parent process, which PyTorch sends to a worker that does not end."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
