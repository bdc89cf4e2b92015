"""Weight Standardisation (Qiao et al., arXiv 1903.10520) of the convolutions that have a norm.

State-dict keys, shapes and the parameters that are trained stay those of the plain convolution; only what is computed with
them differs. So weights trained with it load into a model without it, and the reverse, and are wrong there.
"""

import torch
from detectron2.layers import Conv2d
from torch import nn
from torch.nn import functional as F

_EPS = 1e-5  # added to the deviation and not to the variance


def standardise(weight: torch.Tensor) -> torch.Tensor:
    """(C_out, C_in / groups, kH, kW) -> the same, in which the weights of each output channel have mean 0 and deviation 1.

    w' = (w - mean) / (std + 1e-5), with std by n - 1: mmdetection's ConvWS (mmcv ``conv_ws_2d``), whose models this runs.
    """
    std, mean = torch.std_mean(weight, dim=(1, 2, 3), keepdim=True)
    return (weight - mean) / (std + _EPS)


class WSConv2d(Conv2d):
    """detectron2's Conv2d, whose weight is standardised in each forward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W'); N may be 0."""
        weight = standardise(self.weight)
        x = F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)


def standardise_convs(module: nn.Module) -> None:
    """Turn all convolutions in ``module`` that have a norm into :class:`WSConv2d`.

    In place, as ``torch.nn.utils.parametrize`` does it: detectron2's FPN and heads keep their convolutions in plain lists
    too, where a module put in their place would not be seen.
    """
    for conv in module.modules():
        if type(conv) is Conv2d and conv.norm is not None:
            conv.__class__ = WSConv2d
