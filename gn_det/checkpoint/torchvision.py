"""Convert ResNet weights of torchvision, timm and GroupNorm-reproduce to detectron2's names."""

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
    """Convert the weights of an ImageNet ResNet with BN or GN.

    Args:
        weights: {torchvision's name: tensor}.
        origin: the project's name in the result.
    """
    return apply(KeyMap(resnet_name, why_dropped), weights, origin, backbone_only=True)


def resnet_name(name: str) -> str | None:
    """Return detectron2's name of a ResNet parameter of torchvision or mmdetection; None if unknown."""
    for pattern, template in _RULES:
        if match := re.fullmatch(pattern, name):
            stage = int(match[1]) + 1 if pattern.startswith("layer") else ""  # layer1 is res2
            return match.expand(template.format(stage))
    return None


def why_dropped(name: str) -> str:
    """Return why a tensor with this name in torchvision is not needed; "" if it is needed."""
    if name.endswith(".num_batches_tracked"):
        return "batch count, which only BN without momentum uses"
    return "ImageNet classifier" if name in ("fc.weight", "fc.bias") else ""
