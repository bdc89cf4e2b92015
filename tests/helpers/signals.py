"""Signals that the shell lets this process ignore."""

import contextlib
import signal


def heed_signals() -> None:
    """Let this process, and the processes that it starts, no longer ignore SIGINT and SIGHUP.

    A shell starts commands in the background with SIGINT ignored, and ``nohup`` with SIGHUP ignored. gn_det keeps
    ignoring such signals, so that the tests of signals would fail.
    """
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    for number, handler in defaults.items():
        if signal.getsignal(number) is signal.SIG_IGN:
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(number, handler)
