"""Silence PyTorch's warnings about detectron2's code, and let any name be printed on any console."""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator


def silence_detectron2() -> None:
    """Ignore PyTorch's warnings about detectron2's code in the rest of this process (for commands)."""
    warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)
    warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def escape_unencodable() -> None:
    r"""Print letters that the console cannot encode as ``\u4e2d`` in the rest of this process and in its children.

    Otherwise a name of a file or class in another script would end a command with a UnicodeEncodeError.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            os.environ["PYTHONIOENCODING"] = f"{stream.encoding}:backslashreplace"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ignore PyTorch's warnings about detectron2's code in a block, then restore filters and log level."""
    log = logging.getLogger("torch.fx._symbolic_trace")
    level = log.level
    with warnings.catch_warnings():
        silence_detectron2()
        try:
            yield
        finally:
            log.setLevel(level)
