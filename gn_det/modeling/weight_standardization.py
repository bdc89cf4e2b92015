"""Weight Standardization (Qiao et al., arXiv 1903.10520) of convolutions that have a norm.

The parameters, their shapes and their state-dict keys are those of a plain convolution; only the
computation differs. So weights that were trained with it load into a model without it, and vice versa,
without an error, but give wrong results.
"""

import torch
from detectron2.layers import Conv2d
from torch import nn
from torch.nn import functional as F

_EPS = 1e-5  # added to the standard deviation, not to the variance


def standardize(weight: torch.Tensor) -> torch.Tensor:
    """Standardize the weights of each output channel to mean 0 and standard deviation 1.

    w' = (w - mean) / (std + 1e-5), where std divides by n - 1. This is the formula of mmdetection's
    ConvWS (``conv_ws_2d`` of mmcv), whose models gn_det can load.

    Args:
        weight: (C_out, C_in / groups, kH, kW).

    Returns:
        a tensor of the same shape.
    """
    std, mean = torch.std_mean(weight, dim=(1, 2, 3), keepdim=True)
    return (weight - mean) / (std + _EPS)


class WSConv2d(Conv2d):
    """detectron2's Conv2d that standardizes its weight in each forward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, C_out, H', W') for x (N, C_in, H, W); N may be 0."""
        weight = standardize(self.weight)
        x = F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)


def standardize_convs(module: nn.Module) -> None:
    """Turn all convolutions in ``module`` that have a norm into :class:`WSConv2d`.

    The class of the existing modules is changed, as ``torch.nn.utils.parametrize`` does. New modules would
    not be used everywhere, because detectron2's FPN and heads also keep their convolutions in plain lists.
    """
    for conv in module.modules():
        if type(conv) is Conv2d and conv.norm is not None:
            conv.__class__ = WSConv2d
