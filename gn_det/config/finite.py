"""Refuse config values that are NaN or infinite."""

import math

from detectron2.config import CfgNode

from ..errors import GNDetError


def check_finite(cfg: CfgNode, section: str = "") -> None:
    """Raise GNDetError if a value of a config, also within a list, is NaN or infinite.

    Args:
        section: name of the section that ``cfg`` is, with a dot at its end.
    """
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            check_finite(value, f"{section}{key}.")
        elif not _is_finite(value):
            raise GNDetError(f"{section}{key} is {value}; it must be a finite number.")


def _is_finite(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
