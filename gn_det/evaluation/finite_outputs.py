"""End an evaluation at the first image for which a model computes NaN or infinity.

detectron2 drops proposals, boxes and scores that are not finite without an error, so that the AP of such a model is only too
low.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from torch import nn

from .detections import not_finite


@contextlib.contextmanager
def finite_outputs(model: nn.Module) -> Iterator[None]:
    """Check the outputs of the box heads, and the features of images without proposals, in a ``with`` block.

    Args:
        model: a model in evaluation mode, whose inputs are dicts with ``file_name`` or ``image_id``.

    Raises:
        GNDetError: in a forward pass whose values are not finite.
    """
    images: list[Mapping] = []

    def remember(module: nn.Module, args: tuple) -> None:
        images[:] = args[0]

    def check_head(module: nn.Module, args: tuple, outputs: Sequence[torch.Tensor]) -> None:
        if not torch.stack([values.isfinite().all() for values in outputs]).all():
            raise not_finite("score or box", images)

    def check_features(module: nn.Module, args: tuple, outputs: Any) -> None:
        for index, proposals in enumerate(outputs[0]):
            if not len(proposals) and not all(level[index].isfinite().all() for level in args[1].values()):
                raise not_finite("feature", images[index : index + 1])

    hooks = [model.register_forward_pre_hook(remember)]
    for module in model.modules():
        if isinstance(module, FastRCNNOutputLayers):
            hooks.append(module.register_forward_hook(check_head))
        elif isinstance(module, RPN):
            hooks.append(module.register_forward_hook(check_features))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
