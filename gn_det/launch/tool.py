"""Run a command-line tool, and turn user errors into one sentence and an exit code."""

import os
import sys
from collections.abc import Callable

from ..errors import EXIT_CODE, GNDetError, sentence_of
from ..quiet import escape_unencodable


def run_tool(main: Callable[[], None]) -> None:
    """Run the main function of a tool.

    A GNDetError is printed to stderr as one sentence, and the exit code is 2. After Ctrl-C the exit
    code is 130. The processes of a run print their errors themselves (:mod:`gn_det.launch.processes`).
    """
    escape_unencodable()
    try:
        main()
    except GNDetError as error:
        if os.environ.get("RANK", "0") == "0":  # only once, not in each process of torchrun
            print(f"error: {sentence_of(error)}", file=sys.stderr)
        sys.exit(EXIT_CODE)
    except BrokenPipeError:  # the reader of a pipe, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
