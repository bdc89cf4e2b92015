"""How a model is run where it is not trained. Types, state-dict keys and, but for the last digits, outputs stay."""

import contextlib
import logging

import torch
from detectron2.config import CfgNode
from torch import nn

from .fuse import fuse
from .roi_align import use_row_poolers
from .training import keep_rois_exact

logger = logging.getLogger(__name__)


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
