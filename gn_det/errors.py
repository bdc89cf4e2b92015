"""The exception for mistakes of a user, and the hint that names the nearest known word."""

import difflib
from collections.abc import Sequence


class GNDetError(ValueError):
    """A mistake of the user. Its text is one sentence: what is wrong, where, and what to do.

    The tools print it and exit with code 2. Every other exception is a bug and keeps its traceback.
    """


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return a hint to append to an error sentence about an unknown ``word``.

    Returns:
        `` (did you mean 'x'?)`` where a known word is close to ``word``, else ``; known are 'a', 'b'`` for a list of
        fewer than 30 words, else "".
    """
    near = difflib.get_close_matches(str(word).lower(), [k.lower() for k in known], n=1, cutoff=0.6)
    if near:
        return " (did you mean " + repr(next(k for k in known if k.lower() == near[0])) + "?)"
    return f"; known are {', '.join(map(repr, known))}" if len(known) < 30 else ""
