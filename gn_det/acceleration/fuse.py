"""Fuse each GN of a built model with the ReLU and the residual sum that follow it.

This applies to stems, residual blocks and convolutions of detectron2.

Each module remains the same object, with the same parameters, buffers, hooks and state-dict keys. Only
its ``__class__`` changes, to a subclass in this file with another ``forward``, so ``isinstance`` checks
still hold. A fused model can be copied, pickled, traced, scripted and compiled. A trace, and so a FLOP
counter, sees the same operations as before.
"""

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import nn

from ..modeling.norm import GroupNorm
from ..ops.module import FusedGroupNorm

_NORMS = (nn.GroupNorm, GroupNorm)  # exact types, because a subclass may compute something else
_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_)


class FusedConv2d(Conv2d):
    """detectron2's Conv2d with a fused norm, which can add a residual before its ReLU."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Return (N, C', H', W') for x (N, C, H, W) and a residual of the shape of the output."""
        return self.norm(self._conv_forward(x, self.weight, self.bias), residual)


class FusedBasicStem(BasicStem):
    """The stem of a ResNet: convolution with GN and ReLU, then max pooling."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, C, H/4, W/4) for images (N, 3, H, W)."""
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


class FusedBasicBlock(BasicBlock):
    """The residual block of ResNet-18 and ResNet-34, in which the last norm adds the shortcut."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, C', H / stride, W / stride) for x (N, C, H, W)."""
        out = self.conv1(x)
        return self.conv2(out, x if self.shortcut is None else self.shortcut(x))


class FusedBottleneckBlock(BottleneckBlock):
    """The residual block of ResNet-50 and deeper, in which the last norm adds the shortcut."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, C', H / stride, W / stride) for x (N, C, H, W)."""
        out = self.conv2(self.conv1(x))
        return self.conv3(out, x if self.shortcut is None else self.shortcut(x))


# Class of a block -> class of the fused block, and the convolutions of the block. A ReLU follows each of
# them. If there are several, the last one adds the shortcut.
_BLOCKS: dict[type, tuple[type, tuple[str, ...]]] = {
    BasicStem: (FusedBasicStem, ("conv1",)),
    BasicBlock: (FusedBasicBlock, ("conv1", "conv2")),
    BottleneckBlock: (FusedBottleneckBlock, ("conv1", "conv2", "conv3")),
}


def fuse(model: nn.Module, implementation: str | None = None) -> int:
    """Fuse every GN of a built model with the ReLU and the residual sum that follow it, in place.

    Blocks and convolutions of other classes, or with other norms, are not fused. Their GN layers are
    still replaced, by layers that keep the memory format and, under autocast, the dtype of the input.

    Args:
        implementation: that of :func:`gn_det.ops.group_norm`.

    Returns:
        the number of norms that were changed; 0 if the model is fused already.
    """
    uses = Counter(norm for module in model.modules() for norm in module.children() if type(norm) in _NORMS)
    # If two modules share a norm, both would get the ReLU of one of them.
    unshared = {norm for norm, times in uses.items() if times == 1}
    modules: list[Any] = list(model.modules())
    for module in modules:
        if type(module) in _BLOCKS:
            _fuse_block(module, unshared)
        elif _is_conv_with_unshared_norm(module, unshared) and _is_relu(module.activation):
            module.norm.activation, module.activation = "relu", None
    norms = [module for module in modules if type(module) in _NORMS]
    for norm in norms:
        norm.__class__ = FusedGroupNorm
        norm.activation = getattr(norm, "activation", None)  # TorchScript needs it on the object
        norm.implementation = implementation
    return len(norms)


def _fuse_block(block: nn.Module, unshared: set[nn.Module]) -> None:
    fused_class, conv_names = _BLOCKS[type(block)]
    convs = [getattr(block, name) for name in conv_names]
    if not all(_is_conv_with_unshared_norm(conv, unshared) and conv.activation is None for conv in convs):
        return
    for conv in convs:
        conv.norm.activation = "relu"
    if len(convs) > 1:
        convs[-1].__class__ = FusedConv2d
    block.__class__ = fused_class


def _is_conv_with_unshared_norm(module: nn.Module, unshared: set[nn.Module]) -> bool:
    return type(module) is Conv2d and module.norm in unshared


def _is_relu(activation) -> bool:
    return type(activation) is nn.ReLU or activation in _RELUS
