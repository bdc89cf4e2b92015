"""Reading of weights. Files from elsewhere are hostile until shown otherwise."""

from .load import Checkpointer  # noqa: F401
