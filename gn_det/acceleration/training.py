"""Memory and speed options for training. Each changes a built model in place.

Module types, state-dict keys and, up to rounding, outputs are unchanged. Copies of the model keep the
options.
"""

import contextlib
import functools
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, ROIAlign
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import GNDetError
from ..ops.padding import attach_extents, current_extents, extents_in_use, extents_of
from .on_device.apply import use_fewer_syncs
from .precision import training_precision


def apply_training_options(cfg: CfgNode, model: nn.Module) -> None:
    """Apply the options of ``TRAIN`` and ``SOLVER.AMP`` to a model that will be trained, in place.

    The trainer calls it once, after :func:`gn_det.acceleration.inference.apply_model_options` and before
    it builds the optimizer. It changes the following:

    - ``SOLVER.AMP.ENABLED``: RoIs keep float32 coordinates (:func:`keep_rois_in_float32`).
    - ``TRAIN.CHECKPOINT_ACTIVATIONS``: ResNet blocks recompute their activations in the backward pass
      (:func:`checkpoint_activations`).
    - ``TRAIN.CHANNELS_LAST``: parameters and images become channels_last (:func:`to_channels_last`).
    - ``GPU.MIXED_PRECISION``: on a GPU, both of these.
    - ``TRAIN.FEWER_SYNCS``: samples and proposals have fixed numbers
      (:func:`gn_det.acceleration.on_device.apply.use_fewer_syncs`).
    - ``TRAIN.COMPILE``: the backbone is compiled (:func:`compile_backbone`).

    Raises:
        GNDetError: ``TRAIN.FEWER_SYNCS`` is True, but a part of the model is not supported; or
            ``TRAIN.COMPILE`` is True, but ``torch.compile`` does not work on this machine.
    """
    how = training_precision(cfg)
    if how.dtype is not None:
        keep_rois_in_float32(model)
    if cfg.TRAIN.CHECKPOINT_ACTIVATIONS:
        checkpoint_activations(model)
    if how.channels_last:
        to_channels_last(model)
    if cfg.TRAIN.FEWER_SYNCS:
        use_fewer_syncs(model)
    if cfg.TRAIN.COMPILE:
        compile_backbone(model)


def checkpoint_activations(model: nn.Module) -> None:
    """Turn on activation checkpointing in the stem and in each block of a ResNet.

    Only the input of a block is kept. The backward pass computes its other activations again.
    Frozen blocks keep no activations anyway, and still run once.
    """
    for block in model.modules():
        if isinstance(block, CNNBlockBase):
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, context_fn=_same_extents)


def _same_extents() -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    """Let the second computation of a block leave out the same padding as the first."""
    return contextlib.nullcontext(), extents_in_use(current_extents())


def to_channels_last(model: nn.Module) -> None:
    """Convert the parameters and each batch of images to channels_last memory format."""
    model.to(memory_format=torch.channels_last)
    model.get_submodule("backbone").register_forward_pre_hook(_images_to_channels_last)


def _images_to_channels_last(backbone: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    images = args[0].contiguous(memory_format=torch.channels_last)
    if extents := extents_of(args[0]):
        attach_extents(images, extents)
    return (images,)


def keep_rois_in_float32(model: nn.Module) -> None:
    """Keep the coordinates of RoIs in float32 if features are bfloat16 or float16.

    detectron2's RoIAlign rounds them to the dtype of the features. In bfloat16, a coordinate near 1000
    pixels becomes a multiple of 4.
    """
    for pooler in model.modules():
        if isinstance(pooler, ROIAlign):
            pooler.forward = functools.partial(_forward_in_float32, pooler.forward)


def _forward_in_float32(forward: Callable[[Tensor, Tensor], Tensor], features: Tensor, rois: Tensor) -> Tensor:
    # This costs nothing: under autocast, torchvision's RoIAlign computes in float32 anyway.
    return forward(features.float(), rois).to(features.dtype)


def compile_backbone(model: nn.Module) -> None:
    """Compile the backbone at its first call, with dynamic shapes for images of any size.

    Raises:
        GNDetError: ``torch.compile`` does not work on this machine.
    """
    _check_compiler(next(model.parameters()).device)
    model.get_submodule("backbone").compile(dynamic=True)


def _check_compiler(device: torch.device) -> None:
    """Compile one line of code.

    Nothing else shows whether something is missing: a compiler, headers, Triton or a writable folder.
    """
    try:
        torch.compile(lambda x: x.relu() + 1)(torch.zeros(8, device=device))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")
        raise GNDetError(
            f"TRAIN.COMPILE is True, but torch.compile does not work here ({reason}): install a C++ compiler and, for a "
            "GPU, Triton, or set TRAIN.COMPILE to False."
        ) from error
