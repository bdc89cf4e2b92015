"""How a model is run, with what it computes left as it is: types, state-dict keys and outputs stay.

All of it is done to a built model, in place, and goes with its copies.
"""

import functools
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, ROIAlign
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import GNDetError


def apply_switches(cfg: CfgNode, model: nn.Module) -> None:
    """Run a detectron2 model as the switches of ``TRAIN`` and ``SOLVER.AMP`` say.

    Raises:
        GNDetError: ``TRAIN.COMPILE`` is on, and nothing can be compiled here.
    """
    if cfg.SOLVER.AMP.ENABLED:
        keep_rois_exact(model)
    if cfg.TRAIN.CHECKPOINT_ACTIVATIONS:
        checkpoint_activations(model)
    if cfg.TRAIN.CHANNELS_LAST:
        to_channels_last(model)
    if cfg.TRAIN.COMPILE:
        compile_backbone(model)


def checkpoint_activations(model: nn.Module) -> None:
    """Let each block of a ResNet, its stem too, keep its input alone and compute the rest again for its gradients.

    Blocks that are frozen keep nothing, and run once as before.
    """
    for block in model.modules():
        if isinstance(block, CNNBlockBase):
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def to_channels_last(model: nn.Module) -> None:
    """Keep weights and images channels last (N, H, W, C in memory), and with them what convolutions put out."""
    model.to(memory_format=torch.channels_last)
    model.get_submodule("backbone").register_forward_pre_hook(_images_channels_last)


def _images_channels_last(backbone: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0].contiguous(memory_format=torch.channels_last),)


def keep_rois_exact(model: nn.Module) -> None:
    """Keep the corners of RoIs in float32 where features are bfloat16 or float16.

    detectron2's RoIAlign rounds them to the type of the features: at 1000 pixels, to a multiple of 4 in bfloat16.
    """
    for pooler in model.modules():
        if isinstance(pooler, ROIAlign):
            pooler.forward = functools.partial(_in_float32, pooler.forward)


def _in_float32(forward: Callable[[Tensor, Tensor], Tensor], features: Tensor, rois: Tensor) -> Tensor:
    # No dearer: under autocast torchvision's RoIAlign computes in float32 itself.
    return forward(features.float(), rois).to(features.dtype)


def compile_backbone(model: nn.Module) -> None:
    """torch.compile the backbone, for images of any size, when it is first run.

    Raises:
        GNDetError: nothing can be compiled here.
    """
    _try_compiler(next(model.parameters()).device)
    model.get_submodule("backbone").compile(dynamic=True)


def _try_compiler(device: torch.device) -> None:
    """Compile a line: of all that can be missing (compiler, headers, Triton, a place for files), nothing else tells."""
    try:
        torch.compile(lambda x: x.relu() + 1)(torch.zeros(8, device=device))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")
        raise GNDetError(
            f"TRAIN.COMPILE is True, but torch.compile does not work here ({reason}): install a C++ compiler, and for a "
            "GPU Triton, or set it to False."
        ) from error
