"""ResNet and ResNet-FPN backbones with any of the paper's norms, and detectron2's state-dict keys."""

import logging

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import build_resnet_fpn_backbone

from .norm import check_groups, with_norms, zero_init_residual
from .weight_standardization import standardize_convs

logger = logging.getLogger(__name__)


@BACKBONE_REGISTRY.register()
def build_gn_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build a ResNet with ``MODEL.RESNETS.NORM`` in stem, blocks and shortcuts (backbone of C4 models).

    The stride is on the 3x3 convolution, as in every published GN model. The weights of these models
    also load into a ResNet with the stride on the 1x1 convolution, without a warning, but then give a
    wrong network (60 instead of 76 % ImageNet top-1, mmdetection #160).

    Returns:
        a module that maps images (N, 3, H, W) to a dict with one feature map for each name in
        ``MODEL.RESNETS.OUT_FEATURES``:
        "res2": (N, ``RES2_OUT_CHANNELS``, H/4, W/4).
        "res3", "res4", "res5": twice the channels and half the height and width of the one before.

    Raises:
        GNDetError: the norm is unknown, the group keys contradict each other, or the groups do not
            divide the channels of a layer.
    """
    return _build(build_resnet_backbone, cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_gn_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build a ResNet-FPN with ``MODEL.RESNETS.NORM`` in the ResNet and ``MODEL.FPN.NORM`` in the FPN.

    The ResNet is that of :func:`build_gn_resnet_backbone`. The norms of the FPN follow its lateral and
    output convolutions, which have no ReLU, as in Detectron's GN baselines. A convolution before a norm
    has no bias.

    Returns:
        a module that maps images (N, 3, H, W) to a dict of feature maps:
        "p2": (N, ``MODEL.FPN.OUT_CHANNELS``, H/4, W/4).
        "p3" to "p6": the same channels, and half the height and width of the one before.

    Raises:
        GNDetError: see :func:`build_gn_resnet_backbone`.
    """
    return _build(build_resnet_fpn_backbone, cfg, input_shape)


def _build(builder, cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    backbone = builder(with_norms(stride_in_3x3(cfg)), input_shape)
    check_groups(backbone, "backbone")
    if cfg.MODEL.GN.ZERO_INIT_RESIDUAL:
        zero_init_residual(backbone)
    if cfg.MODEL.GN.WEIGHT_STANDARDIZATION:
        standardize_convs(backbone)
    return backbone


def stride_in_3x3(cfg: CfgNode) -> CfgNode:
    """Return ``cfg`` if ``MODEL.RESNETS.STRIDE_IN_1X1`` is False, else a copy in which it is False.

    detectron2's default is True. For a depth of 50 or more, a warning is logged.
    """
    if not cfg.MODEL.RESNETS.STRIDE_IN_1X1:
        return cfg
    if cfg.MODEL.RESNETS.DEPTH >= 50:  # shallower ResNets have no 1x1 convolution before the 3x3
        logger.warning(
            "MODEL.RESNETS.STRIDE_IN_1X1 is True, but gn_det's ResNets always have the stride on the 3x3 convolution, so "
            "the key is ignored."
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    return cfg
