"""Config texts that make models small."""

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


def flatten(node: dict, prefix: str = "") -> dict:
    """Return the values of nested dicts or CfgNodes by dotted key."""
    found = {}
    for key, value in node.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found
