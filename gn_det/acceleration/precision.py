"""Data type, memory format and GN kernels of training and of inference, as the config and the device say."""

import contextlib
import dataclasses

import torch
from detectron2.config import CfgNode

from ..errors import GNDetError


@dataclasses.dataclass(frozen=True)
class Precision:
    """How a model computes.

    Attributes:
        dtype: the data type of autocast; None: float32 without autocast.
        channels_last: whether parameters and images are in the channels_last memory format.
        implementation: that of :func:`gn_det.ops.group_norm`; None: the fastest one by measurement.
    """

    dtype: torch.dtype | None
    channels_last: bool
    implementation: str | None = None


def training_precision(cfg: CfgNode) -> Precision:
    """Return the precision of training: ``GPU.MIXED_PRECISION``, ``SOLVER.AMP``, and the keys of ``TRAIN``.

    Raises:
        GNDetError: the config asks for bfloat16 and the GPU does not support it.
    """
    if _is_mixed(cfg):
        return _mixed()
    dtype = getattr(torch, cfg.TRAIN.AMP_DTYPE) if cfg.SOLVER.AMP.ENABLED else None
    if _on_gpu(cfg) and dtype is torch.bfloat16 and not _has_bfloat16():
        raise GNDetError(
            "SOLVER.AMP.ENABLED is True, but this GPU does not support bfloat16: set TRAIN.AMP_DTYPE to float16."
        )
    return Precision(dtype, cfg.TRAIN.CHANNELS_LAST)


def inference_precision(cfg: CfgNode) -> Precision:
    """Return the precision of inference: ``GPU.MIXED_PRECISION``, and the keys of ``INFERENCE``."""
    if _is_mixed(cfg):
        return _mixed()
    dtype = None if cfg.INFERENCE.DTYPE == "float32" else getattr(torch, cfg.INFERENCE.DTYPE)
    return Precision(dtype, cfg.INFERENCE.CHANNELS_LAST and not _on_gpu(cfg))


def precision(cfg: CfgNode) -> contextlib.AbstractContextManager:
    """Return the context in which to call a model, so that it computes in the dtype of :func:`inference_precision`."""
    dtype = inference_precision(cfg).dtype
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(cfg.MODEL.DEVICE).type, dtype=dtype)


def _is_mixed(cfg: CfgNode) -> bool:
    return cfg.GPU.MIXED_PRECISION and _on_gpu(cfg)


def _mixed() -> Precision:
    return Precision(torch.bfloat16 if _has_bfloat16() else torch.float16, True, "triton")


def _on_gpu(cfg: CfgNode) -> bool:
    return torch.device(cfg.MODEL.DEVICE).type == "cuda"


def _has_bfloat16() -> bool:
    """Return whether the current GPU computes in bfloat16: since Ampere (compute capability 8.0)."""
    return torch.cuda.is_bf16_supported(including_emulation=False)
