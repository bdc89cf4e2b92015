"""Run a command-line tool, and turn user errors into one sentence and an exit code."""

import os
import sys
from collections.abc import Callable

import torch

from ..errors import GNDetError
from ..quiet import escape_unencodable


def run_tool(main: Callable[[], None]) -> None:
    """Run the main function of a tool.

    A GNDetError, also of a child process, is printed to stderr as one sentence, and the exit code is
    2. After Ctrl-C the exit code is 130.
    """
    escape_unencodable()
    try:
        main()
    except GNDetError as error:
        if os.environ.get("RANK", "0") == "0":  # only once, not in each process of torchrun
            print(f"error: {_sentence(str(error))}", file=sys.stderr)
        sys.exit(2)
    except torch.multiprocessing.ProcessRaisedException as error:
        if "GNDetError: " not in str(error):
            raise
        print(f"error: {_sentence(str(error))}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of a pipe, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)


def _sentence(message: str) -> str:
    """Return the sentence of a GNDetError, whose message is a traceback if it comes from another process.

    The other process is that of another GPU, or a worker that loads data.
    """
    lines = [line for line in message.splitlines() if "GNDetError: " in line]
    return lines[-1].split("GNDetError: ", 1)[1] if lines else message
