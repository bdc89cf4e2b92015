"""Box head, mask head and C4 head whose norm follows the switch. State-dict keys are detectron2's.

Shapes: R regions of interest, C channels, S x S the pooled resolution. R may be 0.
"""

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY, ROI_HEADS_REGISTRY, ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, MaskRCNNConvUpsampleHead, Res5ROIHeads

from ..errors import GNDetError
from .backbone import stride_in_3x3
from .norm import check_groups, with_norms, zero_init_residual
from .weight_standardization import standardise_convs


@ROI_BOX_HEAD_REGISTRY.register()
class FastRCNN4Conv1FCGNHead(FastRCNNConvFCHead):
    """Four 3x3 convolutions, each with ``MODEL.ROI_BOX_HEAD.NORM`` and ReLU, then one fc with ReLU (Section 4.2, Table 5).

    (R, C, S, S) -> (R, FC_DIM). The norm sits before the ReLU, as in Detectron.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        head = cfg.MODEL.ROI_BOX_HEAD
        # 0 and 2 are what detectron2's defaults and its Base-RCNN-FPN.yaml say of the stock head.
        if head.NUM_CONV not in (0, 4) or head.NUM_FC not in (0, 1, 2):
            raise GNDetError(
                f"MODEL.ROI_BOX_HEAD.NAME is {cls.__name__}, which has 4 convolutions and 1 fc, but NUM_CONV is "
                f"{head.NUM_CONV} and NUM_FC is {head.NUM_FC}: set them to 4 and 1, or use FastRCNNConvFCHead."
            )
        ret = super().from_config(with_norms(cfg), input_shape)
        more = {"weight_standardization": cfg.MODEL.GN.WEIGHT_STANDARDIZATION}
        return {**ret, "conv_dims": [head.CONV_DIM] * 4, "fc_dims": [head.FC_DIM], **more}

    @configurable
    def __init__(self, *args, weight_standardization: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        check_groups(self, "roi_heads.box_head")
        if weight_standardization:
            standardise_convs(self)


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNConvUpsampleGNHead(MaskRCNNConvUpsampleHead):
    """3x3 convolutions with ``MODEL.ROI_MASK_HEAD.NORM`` and ReLU, then deconv, ReLU and a 1x1 convolution without norm.

    (R, C, S, S) -> mask logits (R, NUM_CLASSES, 2S, 2S). Detectron's ``mask_rcnn_fcn_head_v1up4convs_gn``.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        ret = super().from_config(with_norms(cfg), input_shape)
        return {**ret, "weight_standardization": cfg.MODEL.GN.WEIGHT_STANDARDIZATION}

    @configurable
    def __init__(self, *args, weight_standardization: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        check_groups(self, "roi_heads.mask_head")
        if weight_standardization:
            standardise_convs(self)


@ROI_HEADS_REGISTRY.register()
class Res5GNROIHeads(Res5ROIHeads):
    """The C4 model's head: ResNet's conv5 on each RoI, with ``MODEL.RESNETS.NORM`` (Section 4.2, Table 4)."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        ret = super().from_config(with_norms(stride_in_3x3(cfg)), input_shape)
        if cfg.MODEL.GN.ZERO_INIT_RESIDUAL:
            zero_init_residual(ret["res5"])
        if cfg.MODEL.GN.WEIGHT_STANDARDIZATION:
            standardise_convs(ret["res5"])
        return ret

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        check_groups(self, "roi_heads")
