"""Checks of config keys of detectron2 that must fit each other."""

import importlib.util
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode

from ..errors import GNDetError
from ..modeling.norm import get_key


def check_consistency(cfg: CfgNode, training: bool) -> None:
    """Check keys of detectron2 that must fit each other.

    Args:
        training: whether the config is used for training.

    Raises:
        GNDetError: for the first keys that do not.
    """
    _check_features(cfg)
    _check_anchors(cfg)
    _check_shallow(cfg)
    if training:
        _check_matching(cfg)
        _check_augmentation(cfg)
        _check_scheduler(cfg)


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
    _check_levels(cfg)


def _check_levels(cfg: CfgNode) -> None:
    """Check that the RoI heads read one level of features without an FPN, and levels without a gap with one."""
    levels = cfg.MODEL.ROI_HEADS.IN_FEATURES
    if cfg.MODEL.ROI_HEADS.NAME.startswith("Res5") and len(levels) > 1:
        raise GNDetError(
            f"MODEL.ROI_HEADS.IN_FEATURES is {levels}, but {cfg.MODEL.ROI_HEADS.NAME} reads only one: pass one."
        )
    numbers = [int(level[-1]) if level[-1].isdecimal() else 1 for level in levels]  # stem is level 1
    if numbers != list(range(numbers[0], numbers[0] + len(levels))):
        raise GNDetError(f"MODEL.ROI_HEADS.IN_FEATURES is {levels}; the levels must follow each other, as p2, p3, p4.")


def _check_shallow(cfg: CfgNode) -> None:
    """Check what a ResNet-18 or ResNet-34 does not support."""
    resnets = cfg.MODEL.RESNETS
    if "resnet" not in cfg.MODEL.BACKBONE.NAME or resnets.DEPTH not in (18, 34):
        return
    for name in ("NUM_GROUPS", "RES5_DILATION"):
        if resnets[name] != 1:
            raise GNDetError(f"MODEL.RESNETS.{name} is {resnets[name]}; it must be 1 for DEPTH {resnets.DEPTH}.")
    if any(resnets.DEFORM_ON_PER_STAGE):
        raise GNDetError(f"MODEL.RESNETS.DEFORM_ON_PER_STAGE is set, which DEPTH {resnets.DEPTH} does not support.")


def _check_matching(cfg: CfgNode) -> None:
    """Check the thresholds of IoU by which boxes are matched with objects, and their labels."""
    for part in ("RPN", "ROI_HEADS"):
        thresholds, labels = cfg.MODEL[part].IOU_THRESHOLDS, cfg.MODEL[part].IOU_LABELS
        if not thresholds or [*thresholds] != sorted(thresholds) or not all(0 < value <= 1 for value in thresholds):
            raise GNDetError(
                f"MODEL.{part}.IOU_THRESHOLDS is {thresholds}; it must be increasing numbers between 0 and 1."
            )
        if len(labels) != len(thresholds) + 1 or not set(labels) <= {-1, 0, 1}:
            raise GNDetError(
                f"MODEL.{part}.IOU_LABELS is {labels}; it must have {len(thresholds) + 1} labels, each 0 (background), 1 "
                "(object) or -1 (ignored)."
            )


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
    return bool(values) and all(isinstance(value, int | float) and value > 0 for value in values)


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
