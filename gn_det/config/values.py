"""Checks of single config keys of detectron2: their range, and the names of registered parts."""

import importlib.util
from collections.abc import Callable, Collection, Iterator, Sequence
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

_MAX_SEED = 2**32 - 1024  # NumPy's limit; the rank of the process is added to the seed


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


RANGES = (
    Range("MODEL.PIXEL_MEAN", lambda values: len(values) == 3, "3 numbers, one per color"),
    Range("MODEL.PIXEL_STD", lambda values: len(values) == 3 and _sizes(values), "3 numbers above 0, one per color"),
    Range("MODEL.BACKBONE.FREEZE_AT", lambda value: 0 <= value <= 5, "between 0 and 5"),
    *_0_or_more("INPUT.MIN_SIZE_TEST", "DATALOADER.NUM_WORKERS", "TEST.EVAL_PERIOD"),
    *_above_0("INPUT.MAX_SIZE_TEST", "TEST.DETECTIONS_PER_IMAGE", "MODEL.ROI_HEADS.NUM_CLASSES"),
    *_above_0("MODEL.RPN.PRE_NMS_TOPK_TEST", "MODEL.RPN.POST_NMS_TOPK_TEST"),
    *_share("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "MODEL.ROI_HEADS.NMS_THRESH_TEST", "MODEL.RPN.NMS_THRESH"),
    Range("SEED", lambda value: value < _MAX_SEED, f"below {_MAX_SEED}, or -1 for a random seed"),
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
# Key that is True -> what to do. What it asks for is not computed, or not evaluated.
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
    _check_features(cfg)
    _check_anchors(cfg)
    if training:
        _check_augmentation(cfg)
        _check_scheduler(cfg)


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


def _check_features(cfg: CfgNode) -> None:
    """Check that the RPN and the RoI heads read features that the ResNet has, for the backbones of known features."""
    name, resnet = cfg.MODEL.BACKBONE.NAME.replace("_gn", ""), cfg.MODEL.RESNETS.OUT_FEATURES
    if name not in ("build_resnet_backbone", "build_resnet_fpn_backbone"):
        return
    _check_known("MODEL.RESNETS.OUT_FEATURES", resnet, ("stem", "res2", "res3", "res4", "res5"))
    if name == "build_resnet_backbone":
        features = [*resnet]
    else:
        _check_known("MODEL.FPN.IN_FEATURES", cfg.MODEL.FPN.IN_FEATURES, resnet)
        features = [feature.replace("res", "p") for feature in cfg.MODEL.FPN.IN_FEATURES] + ["p6"]
    for key in ("MODEL.RPN.IN_FEATURES", "MODEL.ROI_HEADS.IN_FEATURES"):
        _check_known(key, get_key(cfg, key), features)


def _check_known(key: str, values: Sequence[str], known: Sequence[str]) -> None:
    if not values or not set(values) <= set(known):
        raise GNDetError(f"{key} is {values}; it must be one or more of {', '.join(known)}, which the backbone has.")


def _check_anchors(cfg: CfgNode) -> None:
    """Check that anchors are given once for all levels of features, or once for each."""
    levels = len(cfg.MODEL.RPN.IN_FEATURES)
    for key in ("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"):
        values = get_key(cfg, key)
        nested = [value if isinstance(value, list | tuple) else [value] for value in values]
        is_flat = bool(values) and not isinstance(values[0], list | tuple)
        if not nested or not all(_is_sizes(numbers) for numbers in nested):
            raise GNDetError(f"{key} is {values}; it must have one list of numbers above 0 for each level of features.")
        if not is_flat and len(nested) not in (1, levels):
            raise GNDetError(
                f"{key} has {len(nested)} lists, but MODEL.RPN.IN_FEATURES has {levels} levels: pass one list for "
                "all levels, or one for each."
            )
        if not is_flat and len({len(numbers) for numbers in nested}) > 1:
            raise GNDetError(f"{key} is {values}; each level of features must have the same number of anchors.")


def _is_sizes(values: Any) -> bool:
    try:
        return _sizes(values)
    except TypeError:
        return False


def _check_augmentation(cfg: CfgNode) -> None:
    sizes, sampling = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    if sampling == "range" and (len(sizes) != 2 or sizes[0] > sizes[1]):
        raise GNDetError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes}, but INPUT.MIN_SIZE_TRAIN_SAMPLING is range: pass the smallest and the "
            "largest size, such as (640, 800)."
        )
    crop = cfg.INPUT.CROP
    if crop.ENABLED and crop.TYPE.startswith("relative") and max(crop.SIZE) > 1:
        raise GNDetError(f"INPUT.CROP.SIZE is {crop.SIZE}; with INPUT.CROP.TYPE {crop.TYPE} it must be at most 1.")
    polygons = cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon"
    if crop.ENABLED and polygons and importlib.util.find_spec("shapely") is None:
        raise GNDetError(
            "INPUT.CROP.ENABLED is True, but cropping polygons needs shapely: pip install shapely, or set INPUT.MASK_FORMAT "
            "to bitmask."
        )


def _check_scheduler(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR" and not 0 <= solver.BASE_LR_END <= solver.BASE_LR:
        raise GNDetError(
            f"SOLVER.BASE_LR_END is {solver.BASE_LR_END}; it must be between 0 and SOLVER.BASE_LR {solver.BASE_LR}."
        )
    if cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler" and not cfg.DATALOADER.REPEAT_THRESHOLD > 0:
        raise GNDetError(
            "DATALOADER.SAMPLER_TRAIN is RepeatFactorTrainingSampler, but DATALOADER.REPEAT_THRESHOLD is "
            f"{cfg.DATALOADER.REPEAT_THRESHOLD}, with which no image is repeated: set it above 0, for example to 0.001."
        )
