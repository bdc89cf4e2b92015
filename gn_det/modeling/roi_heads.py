"""Box head, mask head and C4 head with any of the paper's norms, and detectron2's state-dict keys.

Shapes: R regions of interest, C channels, S x S pooled resolution. R may be 0.
"""

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY, ROI_HEADS_REGISTRY, ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, MaskRCNNConvUpsampleHead, Res5ROIHeads

from ..errors import GNDetError
from .backbone import stride_in_3x3
from .norm import check_groups, with_norms, zero_init_residual
from .weight_standardization import standardize_convs


@ROI_BOX_HEAD_REGISTRY.register()
class FastRCNN4Conv1FCGNHead(FastRCNNConvFCHead):
    """Box head with four 3x3 convolutions and one fully connected layer (Section 4.2, Table 5).

    ``MODEL.ROI_BOX_HEAD.NORM`` and a ReLU follow each convolution, in this order as in Detectron. A ReLU
    follows the fully connected layer. The head maps (R, C, S, S) to (R, ``FC_DIM``).
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """Return the arguments of ``__init__`` for a config.

        Raises:
            GNDetError: ``NUM_CONV`` or ``NUM_FC`` of the config is not that of this head.
        """
        head = cfg.MODEL.ROI_BOX_HEAD
        # 0 and 2 are the values in detectron2's defaults and in its Base-RCNN-FPN.yaml, so they are accepted.
        if head.NUM_CONV not in (0, 4) or head.NUM_FC not in (0, 1, 2):
            raise GNDetError(
                f"MODEL.ROI_BOX_HEAD.NAME is {cls.__name__}, which has 4 convolutions and 1 fc, but NUM_CONV is "
                f"{head.NUM_CONV} and NUM_FC is {head.NUM_FC}: set them to 4 and 1, or use FastRCNNConvFCHead."
            )
        ret = super().from_config(with_norms(cfg), input_shape)
        ret["weight_standardization"] = cfg.MODEL.GN.WEIGHT_STANDARDIZATION
        return {**ret, "conv_dims": [head.CONV_DIM] * 4, "fc_dims": [head.FC_DIM]}

    @configurable
    def __init__(self, *args, weight_standardization: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        check_groups(self, "roi_heads.box_head")
        if weight_standardization:
            standardize_convs(self)


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNConvUpsampleGNHead(MaskRCNNConvUpsampleHead):
    """Mask head with ``MODEL.ROI_MASK_HEAD.NORM`` (Detectron's ``mask_rcnn_fcn_head_v1up4convs_gn``).

    It has 3x3 convolutions with norm and ReLU, then a deconvolution with ReLU and a 1x1 convolution, both
    without a norm. The head maps (R, C, S, S) to mask logits (R, NUM_CLASSES, 2S, 2S).
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """Return the arguments of ``__init__`` for a config."""
        ret = super().from_config(with_norms(cfg), input_shape)
        return {**ret, "weight_standardization": cfg.MODEL.GN.WEIGHT_STANDARDIZATION}

    @configurable
    def __init__(self, *args, weight_standardization: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        check_groups(self, "roi_heads.mask_head")
        if weight_standardization:
            standardize_convs(self)


@ROI_HEADS_REGISTRY.register()
class Res5GNROIHeads(Res5ROIHeads):
    """Head of C4 models: conv5 of a ResNet with ``MODEL.RESNETS.NORM`` (Section 4.2, Table 4)."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Return the arguments of ``__init__`` for a config, with the built conv5 among them."""
        ret = super().from_config(with_norms(stride_in_3x3(cfg)), input_shape)
        if cfg.MODEL.GN.ZERO_INIT_RESIDUAL:
            zero_init_residual(ret["res5"])
        if cfg.MODEL.GN.WEIGHT_STANDARDIZATION:
            standardize_convs(ret["res5"])
        return ret

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        check_groups(self, "roi_heads")
