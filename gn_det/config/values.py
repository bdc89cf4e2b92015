"""Checks of single config keys of detectron2: their range, and the names of registered parts."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    RPN_HEAD_REGISTRY,
)

from ..errors import GNDetError, did_you_mean
from ..modeling.norm import get_key

_MAX_SEED = 2**32 - 2**16  # NumPy takes seeds below 2**32, and each process adds its rank


@dataclass(frozen=True)
class Range:
    """The values that a key may have.

    Attributes:
        key: dotted name of the key.
        holds: a function of the value. A value for which it raises TypeError is refused too.
        text: the values, for the error message.
        training: whether the key matters in training only.
    """

    key: str
    holds: Callable[[Any], bool]
    text: str
    training: bool = False


def _above_0(*keys: str, training: bool = False) -> list[Range]:
    return [Range(key, lambda value: value > 0, "above 0", training) for key in keys]


def _0_or_more(*keys: str, training: bool = False) -> list[Range]:
    return [Range(key, lambda value: value >= 0, "0 or more", training) for key in keys]


def _share(*keys: str, training: bool = False) -> list[Range]:
    return [Range(key, lambda value: 0 <= value <= 1, "between 0 and 1", training) for key in keys]


def _sizes(values: Any) -> bool:
    return len(values) > 0 and all(value > 0 for value in values)


_HEADS, _BOXES = ("ROI_BOX_HEAD", "ROI_MASK_HEAD"), ("RPN", "ROI_BOX_HEAD")
RANGES = (
    Range("MODEL.PIXEL_MEAN", lambda values: len(values) == 3, "3 numbers, one per color"),
    Range("MODEL.PIXEL_STD", lambda values: len(values) == 3 and _sizes(values), "3 numbers above 0, one per color"),
    Range("MODEL.BACKBONE.FREEZE_AT", lambda value: 0 <= value <= 5, "between 0 and 5"),
    *_0_or_more("INPUT.MIN_SIZE_TEST", "DATALOADER.NUM_WORKERS", "TEST.EVAL_PERIOD"),
    *_above_0("INPUT.MAX_SIZE_TEST", "TEST.DETECTIONS_PER_IMAGE", "MODEL.ROI_HEADS.NUM_CLASSES"),
    *_above_0("MODEL.RPN.PRE_NMS_TOPK_TEST", "MODEL.RPN.POST_NMS_TOPK_TEST", "MODEL.FPN.OUT_CHANNELS"),
    *_above_0(*(f"MODEL.RESNETS.{name}" for name in ("NUM_GROUPS", "WIDTH_PER_GROUP", "STEM_OUT_CHANNELS"))),
    *_above_0("MODEL.RESNETS.RES2_OUT_CHANNELS"),
    *_above_0(*(f"MODEL.{head}.{name}" for head in _HEADS for name in ("POOLER_RESOLUTION", "CONV_DIM"))),
    *_0_or_more(*(f"MODEL.{head}.{name}" for head in _HEADS for name in ("POOLER_SAMPLING_RATIO", "NUM_CONV"))),
    *_0_or_more("MODEL.ROI_BOX_HEAD.NUM_FC"),
    *_above_0("MODEL.ROI_BOX_HEAD.FC_DIM"),
    Range("MODEL.RESNETS.RES5_DILATION", lambda value: value in (1, 2), "1 or 2"),
    Range("MODEL.ANCHOR_GENERATOR.OFFSET", lambda value: 0 <= value < 1, "0 or more, and below 1"),
    Range(
        "MODEL.RPN.CONV_DIMS",
        lambda values: len(values) > 0 and all(v > 0 or v == -1 for v in values),
        "-1 or above 0 each",
    ),
    *[
        Range(f"MODEL.{part}.BBOX_REG_WEIGHTS", lambda v: len(v) == 4 and _sizes(v), "4 numbers above 0")
        for part in _BOXES
    ],
    *_share("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "MODEL.ROI_HEADS.NMS_THRESH_TEST", "MODEL.RPN.NMS_THRESH"),
    Range("SEED", lambda value: value <= _MAX_SEED, f"at most {_MAX_SEED}, or negative for a random seed"),
    Range("INPUT.MIN_SIZE_TRAIN", _sizes, "one or more sizes above 0, such as (800,)", training=True),
    *_above_0("INPUT.MAX_SIZE_TRAIN", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "MODEL.RPN.POST_NMS_TOPK_TRAIN", training=True),
    *_above_0("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", training=True),
    *_share("MODEL.RPN.POSITIVE_FRACTION", "MODEL.ROI_HEADS.POSITIVE_FRACTION", "SOLVER.WARMUP_FACTOR", training=True),
    Range("SOLVER.MOMENTUM", lambda value: 0 <= value < 1, "0 or more, and below 1", training=True),
    *_0_or_more("SOLVER.WEIGHT_DECAY", "SOLVER.WEIGHT_DECAY_NORM", "SOLVER.WARMUP_ITERS", training=True),
    Range("SOLVER.WEIGHT_DECAY_BIAS", lambda value: value is None or value >= 0, "0 or more, or empty", training=True),
    *_above_0("SOLVER.GAMMA", "SOLVER.BIAS_LR_FACTOR", training=True),
)
# Keys that matter only where a switch is True.
SWITCHED = {
    "SOLVER.CLIP_GRADIENTS.ENABLED": _above_0(
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "SOLVER.CLIP_GRADIENTS.NORM_TYPE", training=True
    ),
    "TEST.PRECISE_BN.ENABLED": _above_0("TEST.PRECISE_BN.NUM_ITER", training=True),
    "INPUT.CROP.ENABLED": [
        Range(
            "INPUT.CROP.SIZE", lambda v: len(v) == 2 and _sizes(v), "2 numbers above 0, height and width", training=True
        )
    ],
}
_POOLERS, _LOSSES = ("ROIAlign", "ROIAlignV2", "ROIPool"), ("smooth_l1", "giou", "diou", "ciou")
# Key -> the names that it may have. Keys that start with one of _TRAINING matter in training only.
CHOICES: dict[str, Collection[str]] = {
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN",),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN",),
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": _POOLERS,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": _POOLERS,
    "INPUT.FORMAT": ("BGR", "RGB"),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _LOSSES,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _LOSSES,
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("none", "horizontal", "vertical"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.CROP.TYPE": ("relative_range", "relative", "absolute", "absolute_range"),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler", "RepeatFactorTrainingSampler"),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
}
_TRAINING = ("INPUT.MIN_", "INPUT.RANDOM", "INPUT.MASK", "INPUT.CROP", "DATALOADER", "SOLVER")
# Key -> registry of the parts that it may name.
_REGISTRIES = {
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
}
_ROTATED = ("RotatedAnchorGenerator", "RROIHeads")  # COCO AP is not defined for rotated boxes
# Key that must be False -> why.
_UNSUPPORTED = {
    "MODEL.KEYPOINT_ON": "keypoints are neither trained nor evaluated",
    "TEST.AUG.ENABLED": "test-time augmentation is not applied",
}


def check_values(cfg: CfgNode, training: bool) -> None:
    """Check the keys of detectron2 that have a range or name a part.

    Args:
        training: whether the config is used for training.

    Raises:
        GNDetError: for the first key whose value is out of range, unknown, or not supported.
    """
    for key, names in _known_names(cfg):
        value = get_key(cfg, key)
        if value not in names and (training or not key.startswith(_TRAINING)):
            raise GNDetError(f"{key} is {value!r}, which is not supported{did_you_mean(value, sorted(names))}.")
    for key, fact in _UNSUPPORTED.items():
        if get_key(cfg, key):
            raise GNDetError(f"{key} is True, but {fact} by gn_det: set it to False.")
    ranges = [*RANGES, *(one for switch, more in SWITCHED.items() if get_key(cfg, switch) for one in more)]
    for one in ranges:
        if training or not one.training:
            _check_range(get_key(cfg, one.key), one)


def _known_names(cfg: CfgNode) -> Iterator[tuple[str, Collection[str]]]:
    """Yield each key that names something, and the names that it may have."""
    yield from CHOICES.items()
    for key, registry in _REGISTRIES.items():
        if key == "MODEL.ROI_MASK_HEAD.NAME" and not cfg.MODEL.MASK_ON:
            continue
        if key == "MODEL.ROI_BOX_HEAD.NAME" and cfg.MODEL.ROI_HEADS.NAME not in ("StandardROIHeads", "CascadeROIHeads"):
            continue
        yield key, [name for name, _ in registry if name not in _ROTATED]


def _check_range(value: Any, one: Range) -> None:
    try:
        holds = one.holds(value)
    except TypeError:
        holds = False
    if not holds:
        raise GNDetError(f"{one.key} is {value!r}; it must be {one.text}.")
