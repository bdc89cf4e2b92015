"""How a model is run where it is not trained. Types, state-dict keys and, but for the last digits, outputs stay."""

import contextlib
import logging

import torch
from detectron2.config import CfgNode
from torch import nn

from .errors import GNDetError
from .execution import keep_rois_exact
from .ops.blocks import fuse
from .roi_align import use_row_poolers

logger = logging.getLogger(__name__)
DTYPES = ("float32", "bfloat16")


def add_inference_keys(cfg: CfgNode) -> None:
    """Add the section ``INFERENCE``. The defaults are what was fastest without another AP (docs/performance.md)."""
    cfg.INFERENCE = CfgNode()
    # On a CPU, channels last in memory, and RoIAlign by rows, which that allows. A model that is being trained keeps its
    # own format while it is evaluated, and so do GPUs.
    cfg.INFERENCE.CHANNELS_LAST = True
    # What convolutions and GN compute in: float32, or bfloat16, which CPUs with AVX-512 BF16 or AMX have.
    cfg.INFERENCE.DTYPE = "float32"


def check_inference(cfg: CfgNode) -> None:
    """Raise GNDetError, in one sentence, for a key of ``INFERENCE`` that cannot be followed."""
    if cfg.INFERENCE.DTYPE not in DTYPES:
        raise GNDetError(f"INFERENCE.DTYPE is {cfg.INFERENCE.DTYPE!r}; it is one of {', '.join(DTYPES)}.")


def speed_up(cfg: CfgNode, model: nn.Module, trains: bool = False) -> nn.Module:
    """The same model, in place: GN with what follows it as one operation, RoIAlign by rows, and the memory format.

    Args:
        trains: it is trained too, and its memory format with it.
    """
    if cfg.MODEL.GN.FUSE:
        fuse(model)
    if cfg.INFERENCE.CHANNELS_LAST:
        use_row_poolers(model)
    if cfg.INFERENCE.DTYPE != "float32" and not trains:
        keep_rois_exact(model)
    on_cpu = next(model.parameters()).device.type == "cpu"
    if cfg.INFERENCE.CHANNELS_LAST and on_cpu and not trains:
        model.to(memory_format=torch.channels_last)
    return model


def precision(cfg: CfgNode) -> contextlib.AbstractContextManager:
    """What a model is called within, so that it computes in ``INFERENCE.DTYPE``."""
    if cfg.INFERENCE.DTYPE == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(cfg.MODEL.DEVICE).type, dtype=getattr(torch, cfg.INFERENCE.DTYPE))
