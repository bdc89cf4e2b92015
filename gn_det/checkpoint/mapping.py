"""What a key map gives, and how one is applied."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import GNDetError

#: In :attr:`Converted.sources`, of the statistics that the file has not, as its BN is folded to a scale and a shift.
FOLDED = ""


@dataclass(frozen=True)
class Converted:
    """Weights in detectron2's names.

    Attributes:
        weights: a whole detector's by full name (``backbone.bottom_up.res2.0.conv1.weight``), a backbone's alone by name
            within the ResNet (``res2.0.conv1.weight``, ``stem.conv1.norm.weight``).
        origin: "Detectron", "mmdetection 1.x", "mmdetection 2.x", "mmdetection" (a backbone), "torchvision" or "detectron2".
        backbone_only: whether there is no more than a ResNet.
        sources: detectron2's name -> the file's name, or :data:`FOLDED`.
        dropped: the file's name -> why it is not needed.
        leftover: the file's names that no rule knows.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    origin: str = ""
    backbone_only: bool = False
    sources: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    leftover: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class KeyMap:
    """How the names of one origin become detectron2's.

    Attributes:
        rename: the file's name -> detectron2's, or None where it has none.
        drop: the file's name -> why it is not needed, or "".
        values: (the file's name, detectron2's name, tensor) -> the tensor with its rows in detectron2's order.
    """

    rename: Callable[[str], str | None]
    drop: Callable[[str], str]
    values: Callable[[str, str, Tensor], Tensor] = lambda source, name, tensor: tensor


def apply(key_map: KeyMap, weights: Mapping[str, Tensor], origin: str, backbone_only: bool) -> Converted:
    """Apply a key map to all weights of a file. Nothing is copied but rows that change places.

    Raises:
        GNDetError: a tensor has a shape in which its rows cannot be found.
    """
    done = Converted(origin=origin, backbone_only=backbone_only)
    for source, tensor in weights.items():
        if reason := key_map.drop(source):
            done.dropped[source] = reason
        elif (name := key_map.rename(source)) is None or name in done.weights:
            done.leftover.append(source)
        else:
            try:
                done.weights[name] = key_map.values(source, name, tensor)
            except (IndexError, RuntimeError):
                raise GNDetError(f"{source} has the shape {list(tensor.shape)}, which no {name} has.") from None
            done.sources[name] = source
    return done


def any_starts(names: Iterable[str], *prefixes: str) -> bool:
    """Whether any of the names starts with any of the prefixes."""
    return any(name.startswith(prefixes) for name in names)


def background_to_end(tensor: Tensor) -> Tensor:
    """(1 + K, ...), the background first -> (K + 1, ...), the background last."""
    return torch.cat([tensor[1:], tensor[:1]])


def without_background(tensor: Tensor, each: int) -> Tensor:
    """((1 + K) * each, ...), the background first -> (K * each, ...). What knows no classes stays as it is."""
    return tensor[each:] if tensor.shape[0] > each else tensor
