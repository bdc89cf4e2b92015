"""The exceptions for user errors and failed kernels, and the hint "did you mean"."""

import difflib
from collections.abc import Sequence


class GNDetError(ValueError):
    """A user error. Its message is one sentence that says what is wrong, where, and what to do.

    The commands print the message and exit with code 2. Any other exception is a bug and is shown with
    its traceback.
    """


def sentence_of(error: GNDetError) -> str:
    """Return the message of an error. That of a worker that loads data comes as the text of its traceback."""
    lines = [line for line in str(error).splitlines() if "GNDetError: " in line]
    return lines[-1].split("GNDetError: ", 1)[1] if lines else str(error)


class KernelError(Exception):
    """A GPU kernel could not be compiled or launched. PyTorch's kernels can compute the same."""


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return a hint to append to an error message about an unknown ``word``.

    Returns:
        `` (did you mean 'x'?)`` if a known word is similar to ``word``. Otherwise ``; use one of 'a', 'b'``
        if there are fewer than 30 known words, else "".
    """
    near = difflib.get_close_matches(str(word).lower(), [k.lower() for k in known], n=1, cutoff=0.6)
    if near:
        return " (did you mean " + repr(next(k for k in known if k.lower() == near[0])) + "?)"
    return f"; use one of {', '.join(map(repr, known))}" if len(known) < 30 else ""
