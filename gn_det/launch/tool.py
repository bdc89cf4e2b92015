"""How a command-line tool ends: with its result, or with one sentence and an exit code."""

import os
import sys
from collections.abc import Callable

import torch

from ..errors import GNDetError


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool's main function. A mistake of the user becomes one sentence on stderr and exit code 2."""
    try:
        main()
    except GNDetError as error:
        if os.environ.get("RANK", "0") == "0":  # the other processes of torchrun would repeat it
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except torch.multiprocessing.ProcessRaisedException as error:
        mistake = [line for line in str(error).splitlines() if "GNDetError: " in line]
        if not mistake:
            raise
        print("error: " + mistake[-1].split("GNDetError: ", 1)[1], file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # "... | head" has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
