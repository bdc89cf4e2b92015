"""Read, convert, check and load weights of other projects. No code in a weights file is run."""

from .convert import convert, origin_of, place  # noqa: F401
from .load import read_file, read_notes  # noqa: F401
from .mapping import FOLDED, Converted  # noqa: F401
from .safetensors_io import write_safetensors  # noqa: F401
