"""Config texts that make models small, and the shipped configs whose models are the same."""

from detectron2.config import CfgNode

# A training step of a model of full depth in about a second on one core. Random weights, nothing frozen.
SMALL = """
MODEL:
  DEVICE: cpu
  WEIGHTS: ""
  BACKBONE: {FREEZE_AT: 0}
  RPN:
    BATCH_SIZE_PER_IMAGE: 32
    PRE_NMS_TOPK_TRAIN: 64
    PRE_NMS_TOPK_TEST: 64
    POST_NMS_TOPK_TRAIN: 16
    POST_NMS_TOPK_TEST: 16
  ROI_HEADS: {BATCH_SIZE_PER_IMAGE: 8}
TEST: {DETECTIONS_PER_IMAGE: 8}
"""
# A GN Mask R-CNN with the parts of detectron2 only.
STOCK = {
    "FPN": """
MODEL:
  MASK_ON: True
  BACKBONE: {NAME: build_resnet_fpn_backbone}
  RESNETS: {NORM: GN, STRIDE_IN_1X1: False, OUT_FEATURES: [res2, res3, res4, res5]}
  FPN: {NORM: GN, IN_FEATURES: [res2, res3, res4, res5]}
  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]]}
  RPN: {IN_FEATURES: [p2, p3, p4, p5, p6]}
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [p2, p3, p4, p5]}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_CONV: 4, NUM_FC: 1, NORM: GN, POOLER_RESOLUTION: 7}
  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 4, NORM: GN, POOLER_RESOLUTION: 14}
""",
    "C4": """
MODEL:
  MASK_ON: True
  BACKBONE: {NAME: build_resnet_backbone}
  RESNETS: {NORM: GN, STRIDE_IN_1X1: False}
  ROI_HEADS: {NAME: Res5ROIHeads}
""",
}


# A config of each model that gn_det ships, and the configs whose models differ from it in depth and weights only.
MODELS = {
    "quickstart_R18_FPN_gn_scratch": [],
    "mask_rcnn_R50_C4_frozenbn": [],
    "mask_rcnn_R50_C4_gn": [],
    "mask_rcnn_R50_C4_ln": [],
    "mask_rcnn_R50_FPN_frozenbn": ["mask_rcnn_R101_FPN_frozenbn"],
    "mask_rcnn_R50_FPN_frozenbn_4conv1fc": [],
    "mask_rcnn_R50_FPN_frozenbn_gnhead": [],
    "mask_rcnn_R50_FPN_frozenbn_bnhead": [],
    "mask_rcnn_R50_FPN_bn_4conv1fc": [],
    "mask_rcnn_R50_FPN_syncbn_scratch": [],
    "mask_rcnn_R50_FPN_gn_gnhead": [],
    "mask_rcnn_R50_FPN_gn": [
        "mask_rcnn_R50_FPN_gn_long",
        "mask_rcnn_R50_FPN_gn_scratch",
        "mask_rcnn_R101_FPN_gn",
        "mask_rcnn_R101_FPN_gn_long",
        "mask_rcnn_R101_FPN_gn_scratch",
        "timm_mask_rcnn_R50_FPN_gn",
    ],
    "detectron2_mask_rcnn_R50_FPN_gn_3x": [
        "detectron2_mask_rcnn_R50_FPN_gn_scratch_3x",
        "detectron2_mask_rcnn_R50_FPN_gn_scratch_9x",
        "mmdet_mask_rcnn_R50_FPN_gn_2x",
        "mmdet_mask_rcnn_R50_FPN_gn_3x",
        "mmdet_mask_rcnn_R50_FPN_gn_contrib_2x",
        "mmdet_mask_rcnn_R50_FPN_gn_contrib_3x",
        "mmdet_mask_rcnn_R50_FPN_gn_scratch_6x",
        "mmdet_mask_rcnn_R101_FPN_gn_2x",
        "mmdet_mask_rcnn_R101_FPN_gn_3x",
    ],
    "mmdet_faster_rcnn_R50_FPN_gn_scratch_6x": [],
    "mmdet_faster_rcnn_R50_FPN_gn_ws_1x": ["mmdet_faster_rcnn_R101_FPN_gn_ws_1x"],
    "mmdet_faster_rcnn_X50_FPN_gn_ws_1x": ["mmdet_faster_rcnn_X101_FPN_gn_ws_1x"],
    "mmdet_mask_rcnn_R50_FPN_gn_ws_2x": [
        "mmdet_mask_rcnn_R50_FPN_gn_ws_20_23_24e",
        "mmdet_mask_rcnn_R101_FPN_gn_ws_2x",
        "mmdet_mask_rcnn_R101_FPN_gn_ws_20_23_24e",
    ],
    "mmdet_mask_rcnn_X50_FPN_gn_ws_2x": [
        "mmdet_mask_rcnn_X50_FPN_gn_ws_20_23_24e",
        "mmdet_mask_rcnn_X101_FPN_gn_ws_2x",
        "mmdet_mask_rcnn_X101_FPN_gn_ws_20_23_24e",
    ],
}


def make_narrow(cfg: CfgNode, width: int = 32) -> CfgNode:
    """Reduce the channels of a config, and ResNet-101 to ResNet-50; return the config.

    The parts, layers and norms stay. A ResNet-18 stays as it is, because detectron2 fixes its channels.
    """
    model = cfg.MODEL
    if model.RESNETS.DEPTH >= 50:
        model.RESNETS.DEPTH = 50
        model.RESNETS.STEM_OUT_CHANNELS, model.RESNETS.RES2_OUT_CHANNELS = width, 2 * width
        model.RESNETS.WIDTH_PER_GROUP = width // model.RESNETS.NUM_GROUPS
    model.FPN.OUT_CHANNELS = model.ROI_BOX_HEAD.CONV_DIM = model.ROI_MASK_HEAD.CONV_DIM = width
    model.ROI_BOX_HEAD.FC_DIM = 2 * width
    return cfg


def flatten(node: dict, prefix: str = "") -> dict:
    """Return the values of nested dicts or CfgNodes by dotted key."""
    found = {}
    for key, value in node.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found
