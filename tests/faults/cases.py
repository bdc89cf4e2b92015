"""All rows and cases, in order."""

from . import checkpoints, downloads, folders, processes, resume, training, weights_files  # noqa: F401
from .frame import CASES, ROWS

CASES.sort(key=lambda case: case.row)

__all__ = ["CASES", "ROWS"]
