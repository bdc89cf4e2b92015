"""ResNet and ResNet-FPN whose norm follows the switch. They are detectron2's own, with detectron2's state-dict keys."""

import logging

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import build_resnet_fpn_backbone

from .norm import check_groups, with_norms, zero_init_residual
from .weight_standardization import standardise_convs

logger = logging.getLogger(__name__)


@BACKBONE_REGISTRY.register()
def build_gn_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """ResNet (the C4 models' backbone) with ``MODEL.RESNETS.NORM`` on stem, blocks and shortcuts.

    The stride is on the 3x3 convolution, as in every published GN model: their weights load into the other form
    without a word and give a wrong network (60 instead of 76 % ImageNet top-1, mmdetection #160).

    Returns:
        a module from images (N, 3, H, W) to {"res2": (N, 256, H/4, W/4), ...} for ``MODEL.RESNETS.OUT_FEATURES``.

    Raises:
        GNDetError: unknown norm, contradicting group keys, or channels that the groups do not divide.
    """
    return _build(build_resnet_backbone, cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_gn_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """ResNet-FPN: as :func:`build_gn_resnet_backbone`, with ``MODEL.FPN.NORM`` on the lateral and output convolutions.

    They have no ReLU (Detectron's GN baselines). A convolution before a norm has no bias.

    Returns:
        a module from images (N, 3, H, W) to {"p2": (N, 256, H/4, W/4), ..., "p6": (N, 256, H/64, W/64)}.

    Raises:
        GNDetError: as :func:`build_gn_resnet_backbone`.
    """
    return _build(build_resnet_fpn_backbone, cfg, input_shape)


def _build(builder, cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    backbone = builder(with_norms(stride_in_3x3(cfg)), input_shape)
    check_groups(backbone, "backbone")
    if cfg.MODEL.GN.ZERO_INIT_RESIDUAL:
        zero_init_residual(backbone)
    if cfg.MODEL.GN.WEIGHT_STANDARDIZATION:
        standardise_convs(backbone)
    return backbone


def stride_in_3x3(cfg: CfgNode) -> CfgNode:
    """``cfg``, or a copy with ``MODEL.RESNETS.STRIDE_IN_1X1`` False where it was True (detectron2's default)."""
    if not cfg.MODEL.RESNETS.STRIDE_IN_1X1:
        return cfg
    if cfg.MODEL.RESNETS.DEPTH >= 50:  # the shallower ones have no 1x1 to hold the stride
        logger.warning(
            "MODEL.RESNETS.STRIDE_IN_1X1 is True; gn_det's ResNets have their stride on the 3x3, so it is taken as False."
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    return cfg
