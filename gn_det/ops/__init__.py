"""Group normalization, residual sum and ReLU as one operation (``acceleration.fuse`` applies it)."""

from .function import group_norm  # noqa: F401
from .module import FusedGroupNorm  # noqa: F401
