"""Weights of any origin. Files from elsewhere are hostile until shown otherwise."""

from .convert import convert, origin_of, place  # noqa: F401
from .load import read_file, read_notes  # noqa: F401
from .mapping import FOLDED, Converted  # noqa: F401
from .safetensors_io import write_safetensors  # noqa: F401
