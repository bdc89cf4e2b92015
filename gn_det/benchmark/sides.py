"""The models that are compared: one config with its norm and without, in detectron2's own classes and in gn_det's way.

Weights are random and the same in all of them, as far as they have the same parameters.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model as detectron2_build_model
from torch import nn

from ..acceleration.cpu_memory import keep_freed_memory
from ..acceleration.inference import precision, speed_up
from ..config.checks import check_config
from ..cost.parts import RCNNParts
from ..errors import GNDetError
from ..modeling.norm import NORM_KEYS, get_key
from .made_up import spread_outputs
from .timing import Subject

# What stands for gn_det's parts in detectron2.
_STOCK = {
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
WAYS = {"stock": "stock", "fp32": "gn_det fp32", "bf16": "gn_det bf16"}


def side_name(norm: str, way: str) -> str:
    """``stock``, ``frozen BN, gn_det bf16``: a norm of NORMS in a way of WAYS."""
    return NORMS[norm] + WAYS[way]


@dataclasses.dataclass(frozen=True)
class Side:
    """A model and how it is run."""

    norm: str  # of NORMS, in the place of the config's GN
    way: str  # of WAYS
    cfg: CfgNode
    model: nn.Module

    @property
    def name(self) -> str:
        return side_name(self.norm, self.way)

    def precision(self) -> contextlib.AbstractContextManager:
        """What the model is called within."""
        return precision(self.cfg)

    def subject(self, run: Callable[[], object], seed: int = 0) -> Subject:
        """``run``, with the C library keeping freed memory as in gn_det's tools, or not, as in detectron2's."""

        def before() -> None:
            keep_freed_memory(self.way != "stock")
            torch.manual_seed(seed)

        return Subject(self.name, run, before, "stock" if self.way == "stock" else "gn_det")


def stock_config(cfg: CfgNode) -> CfgNode:
    """The config of the same model in detectron2's own parts.

    Raises:
        GNDetError: it has no GN, or detectron2 has no such model.
    """
    if not any(get_key(cfg, key) == "GN" for key in NORM_KEYS):
        raise GNDetError(
            f"The config {cfg.MODEL.GN.CONFIG} has no GN in any of {', '.join(NORM_KEYS)}: take one that has."
        )
    stock = cfg.clone()
    for key, names in _STOCK.items():
        name = get_key(cfg, key)
        _set(stock, key, names.get(name, name))
    if cfg.MODEL.ROI_BOX_HEAD.NAME == "FastRCNN4Conv1FCGNHead":
        stock.MODEL.ROI_BOX_HEAD.NUM_CONV, stock.MODEL.ROI_BOX_HEAD.NUM_FC = 4, 1
    stock.DATASETS.TEST = ()
    try:
        check_config(stock, has_checkpoint=True, eval_only=True)
    except GNDetError as error:
        raise GNDetError(f"Stock detectron2 cannot build {cfg.MODEL.GN.CONFIG}: {error}") from None
    return stock


def _set(cfg: CfgNode, key: str, value: str) -> None:
    node, name = key.rsplit(".", 1)
    get_key(cfg, node)[name] = value


def _with_norm(cfg: CfgNode, norm: str) -> CfgNode:
    """The config with another norm wherever it has GN."""
    changed = cfg.clone()
    for key in NORM_KEYS:
        if get_key(cfg, key) == "GN":
            _set(changed, key, norm)
    return changed


def build_sides(cfg: CfgNode, images: list[dict], trains: bool, names: Sequence[str] = ()) -> list[Side]:
    """The sides of a comparison; those in fp32 and in bf16 share a model.

    Args:
        images: what the outputs are spread on (:func:`spread_outputs`).
        names: the sides that are wanted; all when empty.

    Raises:
        GNDetError: as :func:`stock_config`, or the model cannot be taken apart.
    """
    stock = stock_config(cfg)
    wanted = {norm: [way for way in WAYS if not names or side_name(norm, way) in names] for norm in NORMS}
    sides = []
    first = detectron2_build_model(stock)
    for norm in (norm for norm, ways in wanted.items() if ways):
        model = detectron2_build_model(_with_norm(stock, norm)) if norm != "GN" else first
        RCNNParts(model, 1, 1)  # says so where it knows no such model
        model.load_state_dict(first.state_dict(), strict=norm == "GN")
        spread_outputs(model, images)
        ours = _build_ours(_with_norm(cfg, norm), model, trains) if set(wanted[norm]) - {"stock"} else model
        for way in wanted[norm]:
            given = _with_norm(stock if way == "stock" else cfg, norm)
            given.INFERENCE.DTYPE = _DTYPES[way]
            sides.append(Side(norm, way, given, model if way == "stock" else ours))
    for side in sides:
        side.model.train(trains)
    return sides


def _build_ours(cfg: CfgNode, stock: nn.Module, trains: bool) -> nn.Module:
    model = detectron2_build_model(cfg)
    model.load_state_dict(stock.state_dict())
    return speed_up(cfg, model, trains)
