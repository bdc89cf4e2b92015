"""Apply a key map: rename, drop and reorder the tensors of one project to those of detectron2."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import GNDetError

#: The source in :attr:`Converted.sources` of BN statistics that were added, because the file has BN
#: folded into a scale and a shift.
FOLDED = ""


@dataclass(frozen=True)
class Converted:
    """Weights under detectron2's names, and what became of each name in the file.

    Attributes:
        weights: {name: tensor}; for a detector the full name
            (``backbone.bottom_up.res2.0.conv1.weight``), for a backbone alone the name within the
            ResNet (``res2.0.conv1.weight``, ``stem.conv1.norm.weight``).
        origin: "Detectron", "mmdetection 1.x", "mmdetection 2.x", "mmdetection" (a backbone),
            "torchvision" or "detectron2".
        backbone_only: whether the weights are those of a ResNet alone.
        sources: {detectron2's name: name in the file, or :data:`FOLDED`}.
        dropped: {name in the file: why the tensor is not needed}.
        leftover: names in the file for which no rule exists.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    origin: str = ""
    backbone_only: bool = False
    sources: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    leftover: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class KeyMap:
    """The rules by which the tensors of one project become detectron2's.

    Attributes:
        rename: a function of the name in the file that returns detectron2's name, or None if it has
            none.
        drop: a function of the name in the file that returns why the tensor is not needed, or "" if
            it is.
        values: a function of (name in the file, detectron2's name, tensor) that returns the tensor
            with its rows in detectron2's order.
    """

    rename: Callable[[str], str | None]
    drop: Callable[[str], str]
    values: Callable[[str, str, Tensor], Tensor] = lambda source, name, tensor: tensor


def apply(key_map: KeyMap, weights: Mapping[str, Tensor], origin: str, backbone_only: bool) -> Converted:
    """Apply a key map to all weights of a file. Tensors are not copied, except where rows are reordered.

    Args:
        weights: {name in the file: tensor}.
        origin, backbone_only: attributes of the result.

    Raises:
        GNDetError: a tensor has a shape in which the rows to reorder do not exist.
    """
    result = Converted(origin=origin, backbone_only=backbone_only)
    for source, tensor in weights.items():
        if reason := key_map.drop(source):
            result.dropped[source] = reason
        elif (name := key_map.rename(source)) is None or name in result.weights:
            result.leftover.append(source)
        else:
            try:
                result.weights[name] = key_map.values(source, name, tensor)
            except (IndexError, RuntimeError):
                raise GNDetError(
                    f"{source} has the shape {list(tensor.shape)}, which {name} cannot have: use another file."
                ) from None
            result.sources[name] = source
    return result


def any_starts(names: Iterable[str], *prefixes: str) -> bool:
    """Return whether any of the names starts with any of the prefixes."""
    return any(name.startswith(prefixes) for name in names)


def background_to_end(tensor: Tensor) -> Tensor:
    """Move the background from the first row to the last: (1 + K, ...) -> (K + 1, ...) for K classes."""
    return torch.cat([tensor[1:], tensor[:1]])


def without_background(tensor: Tensor, rows: int) -> Tensor:
    """Remove the first ``rows`` rows, those of the background: ((1 + K) * rows, ...) -> (K * rows, ...).

    K is the number of classes. A class-agnostic tensor, (rows, ...), is returned unchanged.
    """
    return tensor[rows:] if tensor.shape[0] > rows else tensor
