"""Built detectron2 models, made to call the one operation: stems, residual blocks and convolutions with GN.

A module stays what it was: same object, parameters, buffers, hooks and state-dict keys, and ``isinstance`` of the same
classes. Only its class becomes a subclass of this file, whose ``forward`` differs. So a fused model can be copied, pickled,
traced, scripted and compiled; in a trace (and so for FLOP counters) it consists of the same operations as before.
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

_NORMS = (nn.GroupNorm, GroupNorm)  # a subclass of these may compute something else
_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_)


class FusedConv2d(Conv2d):
    """detectron2's convolution with a norm, and a residual that the norm adds before its activation."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        return self.norm(self._conv_forward(x, self.weight, self.bias), residual)


class FusedBasicStem(BasicStem):
    """Convolution with GN and ReLU, then max pooling."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, C, H/4, W/4)."""
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


class FusedBasicBlock(BasicBlock):
    """The residual block of ResNet-18 and 34, in which the last norm adds the shortcut."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride)."""
        out = self.conv1(x)
        return self.conv2(out, x if self.shortcut is None else self.shortcut(x))


class FusedBottleneckBlock(BottleneckBlock):
    """The residual block of ResNet-50 and deeper, in which the last norm adds the shortcut."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride)."""
        out = self.conv2(self.conv1(x))
        return self.conv3(out, x if self.shortcut is None else self.shortcut(x))


# A block -> what it becomes, and its convolutions, each followed by a ReLU. The last one of two or more adds the shortcut.
_BLOCKS: dict[type, tuple[type, tuple[str, ...]]] = {
    BasicStem: (FusedBasicStem, ("conv1",)),
    BasicBlock: (FusedBasicBlock, ("conv1", "conv2")),
    BottleneckBlock: (FusedBottleneckBlock, ("conv1", "conv2", "conv3")),
}


def fuse(model: nn.Module) -> int:
    """Let every GN of a built detectron2 model take the ReLU and the shortcut that follow it into one operation.

    In blocks and convolutions of other classes, or with other norms, nothing is fused, but each GN keeps the memory format
    and, under autocast, the dtype of its input.

    Returns:
        how many norms it changed: 0 the second time.
    """
    uses = Counter(norm for module in model.modules() for norm in module.children() if type(norm) in _NORMS)
    alone = {norm for norm, times in uses.items() if times == 1}  # another user of the norm would get the ReLU too
    modules: list[Any] = list(model.modules())
    for module in modules:
        if type(module) in _BLOCKS:
            _fuse_block(module, alone)
        elif _is_conv(module, alone) and _is_relu(module.activation):
            module.norm.activation, module.activation = "relu", None
    norms = [module for module in modules if type(module) in _NORMS]
    for norm in norms:
        norm.__class__ = FusedGroupNorm
        norm.activation = getattr(norm, "activation", None)  # also of the object, where TorchScript looks for it
    return len(norms)


def _fuse_block(block: nn.Module, alone: set[nn.Module]) -> None:
    fused, names = _BLOCKS[type(block)]
    convs = [getattr(block, name) for name in names]
    if not all(_is_conv(conv, alone) and conv.activation is None for conv in convs):
        return
    for conv in convs:
        conv.norm.activation = "relu"
    if len(convs) > 1:
        convs[-1].__class__ = FusedConv2d
    block.__class__ = fused


def _is_conv(module: nn.Module, alone: set[nn.Module]) -> bool:
    return type(module) is Conv2d and module.norm in alone


def _is_relu(activation) -> bool:
    return type(activation) is nn.ReLU or activation in _RELUS
