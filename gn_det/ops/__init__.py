"""Group normalization, residual sum and ReLU as one operation (``acceleration.fuse`` applies it)."""

from .function import group_norm
from .module import FusedGroupNorm

__all__ = ["FusedGroupNorm", "group_norm"]
