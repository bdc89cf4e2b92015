"""torchvision's names of a ResNet -> detectron2's. timm and GroupNorm-reproduce name theirs alike, GN included."""

import re
from collections.abc import Mapping

from torch import Tensor

from .mapping import Converted, KeyMap, apply

ORIGIN = "torchvision"
_STATE = r"\.(weight|bias|running_mean|running_var)"
_RULES = (
    (r"conv1\.weight", "stem.conv1.weight"),
    (rf"(?:bn|gn)1{_STATE}", r"stem.conv1.norm.\1"),
    (r"layer([1-4])\.(\d+)\.conv(\d)\.weight", r"res{}.\2.conv\3.weight"),
    (rf"layer([1-4])\.(\d+)\.(?:bn|gn)(\d){_STATE}", r"res{}.\2.conv\3.norm.\4"),
    (r"layer([1-4])\.(\d+)\.downsample\.0\.weight", r"res{}.\2.shortcut.weight"),
    (rf"layer([1-4])\.(\d+)\.downsample\.1{_STATE}", r"res{}.\2.shortcut.norm.\3"),
)


def from_torchvision(weights: Mapping[str, Tensor], origin: str = ORIGIN) -> Converted:
    """Weights of an ImageNet ResNet, with any norm."""
    return apply(KeyMap(resnet_name, why_dropped), weights, origin, backbone_only=True)


def resnet_name(name: str) -> str | None:
    """A ResNet's parameter by torchvision's or mmdetection's name -> its name in detectron2's ResNet, or None."""
    for pattern, template in _RULES:
        if match := re.fullmatch(pattern, name):
            stage = int(match[1]) + 1 if pattern.startswith("layer") else ""  # layer1 is res2
            return match.expand(template.format(stage))
    return None


def why_dropped(name: str) -> str:
    """Why a parameter by torchvision's name is not needed, or ""."""
    if name.endswith(".num_batches_tracked"):
        return "count of batches, which only a BN without momentum reads"
    return "classifier of ImageNet" if name in ("fc.weight", "fc.bias") else ""
