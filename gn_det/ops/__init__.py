"""GN with what follows it in a detector (residual sum, ReLU) as one operation. Models call it by ``blocks.fuse``."""

from .function import group_norm  # noqa: F401
from .module import FusedGroupNorm  # noqa: F401
