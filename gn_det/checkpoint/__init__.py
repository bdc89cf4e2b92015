"""Reading of weights. Files from elsewhere are hostile until shown otherwise."""

from .load import Checkpointer, read_notes  # noqa: F401
