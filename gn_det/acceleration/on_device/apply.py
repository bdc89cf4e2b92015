"""Turn a built model into one whose training steps seldom wait for the GPU."""

from typing import Any

from detectron2.layers import ROIAlign
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import (
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    Res5ROIHeads,
    StandardROIHeads,
)
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import GNDetError
from ...modeling.roi_heads import MaskRCNNConvUpsampleGNHead, Res5GNROIHeads
from ..roi_align import RowROIPooler
from .heads import (
    OnDeviceGNMaskHead,
    OnDeviceMaskHead,
    OnDeviceOutputLayers,
    OnDeviceRes5GNROIHeads,
    OnDeviceRes5ROIHeads,
    OnDeviceROIHeads,
)
from .pooling import OnDeviceROIPooler, OnDeviceRowROIPooler
from .proposals import OnDeviceAnchorGenerator, OnDeviceRPN
from .transfer import OnDeviceRCNN

# Class of a module (exactly, because a subclass may compute something else) -> its class with fixed sizes.
_CLASSES: dict[type, type] = {
    GeneralizedRCNN: OnDeviceRCNN,
    DefaultAnchorGenerator: OnDeviceAnchorGenerator,
    RPN: OnDeviceRPN,
    StandardROIHeads: OnDeviceROIHeads,
    Res5ROIHeads: OnDeviceRes5ROIHeads,
    Res5GNROIHeads: OnDeviceRes5GNROIHeads,
    FastRCNNOutputLayers: OnDeviceOutputLayers,
    MaskRCNNConvUpsampleHead: OnDeviceMaskHead,
    MaskRCNNConvUpsampleGNHead: OnDeviceGNMaskHead,
    ROIPooler: OnDeviceROIPooler,
    RowROIPooler: OnDeviceRowROIPooler,
}


def use_fewer_syncs(model: nn.Module) -> nn.Module:
    """Let the training steps of a built model run with fixed sizes, in place.

    Call it after the other options of the model; a second call changes nothing. Parameters and
    state-dict keys stay, and so does inference.

    Args:
        model: detectron2's GeneralizedRCNN with RPN, and the box and mask heads of detectron2 or gn_det.

    Returns:
        the same model.

    Raises:
        GNDetError: a part of the model is not supported.
    """
    if isinstance(model, OnDeviceRCNN):
        return model
    _check(model)
    for module in model.modules():
        module.__class__ = _CLASSES.get(type(module), type(module))
    return model


def _check(model: Any) -> None:
    if type(model) is not GeneralizedRCNN:
        _refuse(f"a {type(model).__name__}")
    rpn, heads = model.proposal_generator, model.roi_heads
    parts = [rpn, getattr(rpn, "anchor_generator", None), heads, getattr(heads, "box_predictor", None)]
    parts += [heads.mask_head] if getattr(heads, "mask_on", False) else []
    for part in parts:
        if type(part) not in _CLASSES:
            _refuse(f"a {type(part).__name__}")
    if getattr(heads, "keypoint_on", False):
        _refuse("MODEL.KEYPOINT_ON")
    if getattr(heads, "train_on_pred_boxes", False):
        _refuse("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES")
    if {rpn.box_reg_loss_type, heads.box_predictor.box_reg_loss_type} != {"smooth_l1"}:
        _refuse("a BBOX_REG_LOSS_TYPE other than smooth_l1")
    if heads.box_predictor.use_sigmoid_ce:
        _refuse("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE")
    if getattr(heads, "mask_on", False) and heads.mask_head.vis_period:
        _refuse("VIS_PERIOD")
    if any(isinstance(module, _BatchNorm) for module in heads.modules()):
        _refuse("batch normalization in the RoI heads, whose statistics would include empty slots")
    poolers = [module for module in heads.modules() if isinstance(module, ROIPooler)]
    if any(type(level) is not ROIAlign for pooler in poolers for level in pooler.level_poolers):
        _refuse("a POOLER_TYPE other than ROIAlign and ROIAlignV2")
    if getattr(heads, "mask_pooler", poolers) is None:
        _refuse("an empty MODEL.ROI_MASK_HEAD.POOLER_TYPE")


def _refuse(what: str) -> None:
    raise GNDetError(f"TRAIN.FEWER_SYNCS is True, but it does not support {what}: set TRAIN.FEWER_SYNCS to False.")
