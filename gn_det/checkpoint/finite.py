"""Find tensors with NaN or infinity."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


def not_finite(data: object) -> list[str]:
    """Return the names of the tensors that contain NaN or infinity.

    Args:
        data: a checkpoint or a part of it: nested dicts, lists and tuples with tensors.

    Returns:
        the keys on the way to each tensor, joined by dots, such as "model.backbone.weight".
    """
    return [name for name, value in tensors_in(data) if value.is_floating_point() and not _is_finite(value)]


def tensors_in(data: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the value of each tensor, with names as :func:`not_finite` returns them."""
    if isinstance(data, Tensor):
        yield prefix, data
        return
    pairs = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list | tuple) else ()
    for key, value in pairs:
        yield from tensors_in(value, f"{prefix}.{key}" if prefix else str(key))


def _is_finite(value: Tensor) -> bool:
    # NaN and infinity stay in the sum, which is much faster than isfinite(). Finite values can overflow in it.
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())
