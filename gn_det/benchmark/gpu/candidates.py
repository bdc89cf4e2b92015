"""The models to compare, as data, and how each is built."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model as detectron2_build_model
from torch import nn

from ...acceleration.inference import apply_model_options
from ...acceleration.training import apply_training_options, compile_backbone, to_channels_last
from ..candidates import replace_gn, set_key, stock_config
from ..synthetic import rescale_outputs

_NCHW = {"INFERENCE.CHANNELS_LAST": False}
_LAST = {"INFERENCE.CHANNELS_LAST": True, "TRAIN.CHANNELS_LAST": True}
_BF16 = {"SOLVER.AMP.ENABLED": True, "TRAIN.AMP_DTYPE": "bfloat16", "INFERENCE.DTYPE": "bfloat16"}
# On a GPU, the switch alone would do; the other keys are for a CPU.
_MIXED = _BF16 | _LAST | {"GPU.MIXED_PRECISION": True}
_FEWER = {"TRAIN.FEWER_SYNCS": True, "INFERENCE.PASTE_ON_HOST": True, "INFERENCE.PREFETCH": True}
_GRAPHS = {"TRAIN.CUDA_GRAPHS": True, "INFERENCE.CUDA_GRAPHS": True}
_OWN_KEYS = ("MODEL.GN.", "GPU.", *_FEWER, *_GRAPHS)  # keys of gn_det that stock does not have


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to run the model of a config.

    Attributes:
        stock: whether the model is built from detectron2's classes only.
        norm: replaces GN wherever the config has it.
        options: config keys and their values. For stock, the same keys mean what a user of detectron2 does by
            hand: autocast, channels_last, ``torch.compile`` of the backbone.
        environment: environment variables of the process.
    """

    stock: bool
    norm: str = "GN"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


CANDIDATES: dict[str, Candidate] = {
    "stock fp32": Candidate(True),
    "gn_det fp32": Candidate(False),
    "stock bf16": Candidate(True, options=_BF16 | _NCHW),
    "stock bf16 channels_last": Candidate(True, options=_BF16 | _LAST),
    "gn_det bf16": Candidate(False, options=_BF16 | _NCHW),
    "gn_det bf16 channels_last": Candidate(False, options=_MIXED),
    "gn_det bf16 channels_last, PyTorch's kernels": Candidate(False, options=_BF16 | _LAST),
    "gn_det bf16 channels_last, fewer waits": Candidate(False, options=_MIXED | _FEWER),
    "gn_det bf16 channels_last, padding as in stock": Candidate(
        False, options=_MIXED | {"MODEL.GN.IGNORE_PADDING": False}
    ),
    "gn_det bf16 channels_last, all switches": Candidate(
        False, options=_MIXED | _FEWER | _GRAPHS | {"MODEL.GN.IGNORE_PADDING": False}
    ),
    "BN* stock bf16 channels_last": Candidate(True, "FrozenBN", _BF16 | _LAST),
    "BN* gn_det bf16 channels_last": Candidate(False, "FrozenBN", _MIXED),
    "stock bf16 compiled": Candidate(True, options=_BF16 | _NCHW | {"TRAIN.COMPILE": True}),
}
FP32, BF16 = "stock fp32", "stock bf16"  # the references of the speedups


def counterpart(name: str, **changes: object) -> str | None:
    """Return the name of the candidate that differs only in some attributes, or None.

    The environment does not count, and neither do keys of gn_det that stock does not have.

    Args:
        name: a key of CANDIDATES.
        changes: attributes of :class:`Candidate` and their values.
    """

    def essence(candidate: Candidate) -> tuple:
        options = {k: v for k, v in candidate.options.items() if not (candidate.stock and k.startswith(_OWN_KEYS))}
        return candidate.stock, candidate.norm, sorted(options.items())

    wanted = essence(dataclasses.replace(CANDIDATES[name], **changes))  # type: ignore[arg-type]
    return next((other for other, candidate in CANDIDATES.items() if essence(candidate) == wanted), None)


def candidate_config(candidate: Candidate, cfg: CfgNode) -> CfgNode:
    """Return the config with which the candidate runs."""
    own = replace_gn(stock_config(cfg) if candidate.stock else cfg, candidate.norm)
    for key, value in candidate.options.items():
        set_key(own, key, value)
    return own


def save_weights(cfg: CfgNode, norm: str, images: list[dict], path: Path) -> None:
    """Save random weights with which the outputs vary (see :func:`rescale_outputs`), for all candidates of a norm.

    All norms have the same values in the parameters that they share, except for the last layers.

    Args:
        images: inputs of the model, on which the outputs are rescaled.
    """
    torch.manual_seed(max(cfg.SEED, 0))
    stock = stock_config(cfg)
    state = detectron2_build_model(stock).state_dict()
    model = detectron2_build_model(replace_gn(stock, norm))
    model.load_state_dict(state, strict=norm == "GN")
    rescale_outputs(model, images)
    torch.save(model.state_dict(), path)


def build_for_training(candidate: Candidate, cfg: CfgNode, weights: Path) -> nn.Module:
    """Return the model in training mode, prepared as its users do.

    Args:
        cfg: see :func:`candidate_config`.
        weights: file of :func:`save_weights`.
    """
    model = _build(cfg, weights)
    if candidate.stock:
        _apply_stock_options(cfg, model)
        if cfg.SOLVER.AMP.ENABLED:
            autocast = torch.autocast(torch.device(cfg.MODEL.DEVICE).type, getattr(torch, cfg.TRAIN.AMP_DTYPE))
            model.forward = autocast(model.forward)
    else:
        apply_model_options(cfg, model, for_training=True)
        apply_training_options(cfg, model)
    return model.train()


def build_for_inference(candidate: Candidate, cfg: CfgNode, weights: Path) -> nn.Module:
    """Return the model in evaluation mode, prepared as its users do; to be called in ``precision(cfg)``.

    Args are those of :func:`build_for_training`.
    """
    model = _build(cfg, weights)
    if candidate.stock:
        _apply_stock_options(cfg, model)
    else:
        apply_model_options(cfg, model)
    return model.eval()


def _build(cfg: CfgNode, weights: Path) -> nn.Module:
    model = detectron2_build_model(cfg)
    model.load_state_dict(torch.load(weights, map_location=cfg.MODEL.DEVICE, weights_only=True))
    return model


def _apply_stock_options(cfg: CfgNode, model: nn.Module) -> None:
    if cfg.TRAIN.CHANNELS_LAST:
        to_channels_last(model)
    if cfg.TRAIN.COMPILE:
        compile_backbone(model)
