"""The one exception for what a user can get wrong. Every other exception is a bug and keeps its traceback."""


class GNDetError(ValueError):
    """One sentence: what is wrong, where, and what to do. The tools print it and exit with code 2."""
