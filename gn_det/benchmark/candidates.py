"""Build the models to compare: GN, frozen BN or no norm, in stock detectron2 and in gn_det.

All models have random weights, with the same values in the parameters that they share.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model as detectron2_build_model
from torch import nn

from ..acceleration.cpu_memory import keep_freed_memory
from ..acceleration.inference import apply_model_options
from ..acceleration.precision import precision
from ..config.checks import check_config
from ..cost.parts import RCNNParts
from ..errors import GNDetError
from ..modeling.norm import NORM_KEYS, get_key
from .synthetic import rescale_outputs
from .timing import TimedCall

# Config key -> {name of a part of gn_det: name of detectron2's equivalent}.
_STOCK_NAMES = {
    "MODEL.BACKBONE.NAME": {
        "build_gn_resnet_backbone": "build_resnet_backbone",
        "build_gn_resnet_fpn_backbone": "build_resnet_fpn_backbone",
    },
    "MODEL.ROI_HEADS.NAME": {"Res5GNROIHeads": "Res5ROIHeads"},
    "MODEL.ROI_BOX_HEAD.NAME": {"FastRCNN4Conv1FCGNHead": "FastRCNNConvFCHead"},
    "MODEL.ROI_MASK_HEAD.NAME": {"MaskRCNNConvUpsampleGNHead": "MaskRCNNConvUpsampleHead"},
}
_DTYPES = {"stock": "float32", "fp32": "float32", "bf16": "bfloat16"}
NORMS = {"GN": "", "FrozenBN": "frozen BN, ", "": "no norm, "}
IMPLEMENTATIONS = {"stock": "stock", "fp32": "gn_det fp32", "bf16": "gn_det bf16"}


def candidate_name(norm: str, implementation: str) -> str:
    """Return the name of a candidate, such as "stock" or "frozen BN, gn_det bf16".

    Args:
        norm: a key of NORMS.
        implementation: a key of IMPLEMENTATIONS.
    """
    return NORMS[norm] + IMPLEMENTATIONS[implementation]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model to time, with the config that it runs with."""

    norm: str  # key of NORMS; replaces GN in the config
    implementation: str  # key of IMPLEMENTATIONS
    cfg: CfgNode
    model: nn.Module

    @property
    def name(self) -> str:
        """The name by which ``--sides`` and the records call the candidate."""
        return candidate_name(self.norm, self.implementation)

    def precision(self) -> contextlib.AbstractContextManager:
        """Return the context manager in which the model has to be called (autocast for bfloat16)."""
        return precision(self.cfg)

    def timed_call(self, run: Callable[[], object], seed: int = 0) -> TimedCall:
        """Return ``run`` as a call to time, with the seed and the malloc settings set before each run.

        gn_det's tools let the C library keep freed memory, and detectron2's do not.
        """

        def prepare() -> None:
            keep_freed_memory(self.implementation != "stock")
            torch.manual_seed(seed)

        return TimedCall(self.name, run, prepare, "stock" if self.implementation == "stock" else "gn_det")


def stock_config(cfg: CfgNode) -> CfgNode:
    """Return the config of the same model with detectron2's classes instead of gn_det's.

    Raises:
        GNDetError: the config has no GN, or detectron2 cannot build the model.
    """
    if not any(get_key(cfg, key) == "GN" for key in NORM_KEYS):
        raise GNDetError(
            f"The config {cfg.MODEL.GN.CONFIG} has no GN in any of {', '.join(NORM_KEYS)}; use a config with GN."
        )
    stock = cfg.clone()
    for key, names in _STOCK_NAMES.items():
        name = get_key(cfg, key)
        set_key(stock, key, names.get(name, name))
    if cfg.MODEL.ROI_BOX_HEAD.NAME == "FastRCNN4Conv1FCGNHead":
        stock.MODEL.ROI_BOX_HEAD.NUM_CONV, stock.MODEL.ROI_BOX_HEAD.NUM_FC = 4, 1
    stock.DATASETS.TEST = ()
    try:
        check_config(stock, has_checkpoint=True, eval_only=True)
    except GNDetError as error:
        raise GNDetError(f"Stock detectron2 cannot build {cfg.MODEL.GN.CONFIG}: {error}") from None
    return stock


def set_key(cfg: CfgNode, key: str, value: object) -> None:
    """Set a config key, given its dotted name."""
    node, name = key.rsplit(".", 1)
    get_key(cfg, node)[name] = value


def replace_gn(cfg: CfgNode, norm: str) -> CfgNode:
    """Return a copy of the config with another norm wherever it has GN."""
    changed = cfg.clone()
    for key in NORM_KEYS:
        if get_key(cfg, key) == "GN":
            set_key(changed, key, norm)
    return changed


def build_candidates(cfg: CfgNode, images: list[dict], training: bool, names: Sequence[str] = ()) -> list[Candidate]:
    """Build the candidates of a comparison. The fp32 and bf16 candidates of a norm share a model.

    Args:
        cfg: a config with GN.
        images: inputs on which the outputs are rescaled (see :func:`rescale_outputs`).
        training: whether the models are built for training, and left in training mode.
        names: names of the candidates to build; all of them if empty.

    Raises:
        GNDetError: see :func:`stock_config`; or ``RCNNParts`` does not support the model.
    """
    stock_cfg = stock_config(cfg)
    chosen = {norm: [i for i in IMPLEMENTATIONS if not names or candidate_name(norm, i) in names] for norm in NORMS}
    candidates = []
    stock_gn = detectron2_build_model(stock_cfg)
    for norm in (norm for norm, implementations in chosen.items() if implementations):
        stock = detectron2_build_model(replace_gn(stock_cfg, norm)) if norm != "GN" else stock_gn
        RCNNParts(stock, 1, 1)  # raises GNDetError if the model is not supported
        stock.load_state_dict(stock_gn.state_dict(), strict=norm == "GN")
        rescale_outputs(stock, images)
        only_stock = chosen[norm] == ["stock"]
        accelerated = stock if only_stock else _build_gn_det(replace_gn(cfg, norm), stock, training)
        for implementation in chosen[norm]:
            is_stock = implementation == "stock"
            own_cfg = replace_gn(stock_cfg if is_stock else cfg, norm)
            own_cfg.INFERENCE.DTYPE = _DTYPES[implementation]
            candidates.append(Candidate(norm, implementation, own_cfg, stock if is_stock else accelerated))
    for candidate in candidates:
        candidate.model.train(training)
    return candidates


def _build_gn_det(cfg: CfgNode, stock: nn.Module, training: bool) -> nn.Module:
    model = detectron2_build_model(cfg)
    model.load_state_dict(stock.state_dict())
    return apply_model_options(cfg, model, training)
