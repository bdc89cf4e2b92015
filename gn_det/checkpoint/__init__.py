"""Read, convert, check and load weights of other projects. No code in a weights file is run."""

from .convert import convert, origin_of, place
from .load import read_file, read_notes
from .mapping import FOLDED, Converted
from .safetensors_io import write_safetensors

__all__ = ["FOLDED", "Converted", "convert", "origin_of", "place", "read_file", "read_notes", "write_safetensors"]
