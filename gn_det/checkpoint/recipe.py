"""Compare the training recipe of weights (color order, pixel mean, groups, anchors, ...) with a config.

The tensors do not contain these settings, but the weights give wrong results in a model with others.
"""

import math
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode

from ..modeling.norm import NORM_KEYS, PER_SAMPLE, get_key
from ..zoo.index import with_current_keys

#: The recipes of weights that are recognized by their tensor names alone. Detectron's has no
#: "stride_in_1x1", because its files differ: the stride is in the 3x3 convolution of GN models and
#: in the 1x1 convolution of BN* models.
RECIPES_BY_ORIGIN: dict[str, dict[str, Any]] = {
    "Detectron": {"format": "BGR", "pixel_mean": [102.9801, 115.9465, 122.7717], "pixel_std": [1.0, 1.0, 1.0]},
    "torchvision": {
        "format": "RGB",
        "pixel_mean": [123.675, 116.28, 103.53],
        "pixel_std": [58.395, 57.12, 57.375],
        "stride_in_1x1": False,
    },
}
# In gray levels. The BGR means of Detectron and detectron2 differ by less, and fit the same weights.
_MEAN_TOLERANCE = 2.0
# A fraction of the std. The same published values occur in RGB order and in BGR order.
_STD_TOLERANCE = 0.05

# What an error sentence calls each setting, and the config key that sets it.
_SETTINGS = {
    "format": ("images in", "INPUT.FORMAT"),
    "pixel_mean": ("the pixel mean", "MODEL.PIXEL_MEAN"),
    "pixel_std": ("the pixel std", "MODEL.PIXEL_STD"),
    "stride_in_1x1": ("STRIDE_IN_1X1", "MODEL.RESNETS.STRIDE_IN_1X1"),
    "groups": ("the number of groups", ""),
    "eps": ("eps", "MODEL.GN.EPS"),
    "weight_standardization": ("WEIGHT_STANDARDIZATION", "MODEL.GN.WEIGHT_STANDARDIZATION"),
}
# What each setting must be, and the types of its value.
_KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "format": ("a text", (str,)),
    "pixel_mean": ("a list of numbers", (list, tuple)),
    "pixel_std": ("a list of numbers", (list, tuple)),
    "stride_in_1x1": ("True or False", (bool,)),
    "groups": ("a number", (int, str)),
    "eps": ("a number", (int, float)),
    "weight_standardization": ("True or False", (bool,)),
}
# gn_det's parts have the tensors and the outputs of detectron2's.
_STOCK_NAMES = {
    "FastRCNN4Conv1FCGNHead": "FastRCNNConvFCHead",
    "MaskRCNNConvUpsampleGNHead": "MaskRCNNConvUpsampleHead",
    "Res5GNROIHeads": "Res5ROIHeads",
}


def recipe_of(cfg: CfgNode) -> dict[str, Any]:
    """Return the recipe of a model that is trained with a config.

    Returns:
        A dict with

        - "format": "BGR" or "RGB"
        - "pixel_mean": list of 3 floats, in the order of "format"
        - "pixel_std": list of 3 floats, in the order of "format"
        - "stride_in_1x1": bool; None for a ResNet without bottlenecks
        - "groups": int, or str if it depends on the channels; None if no norm is GN, LN or IN
        - "eps": float, of these norms; None if there are none
        - "weight_standardization": bool
    """
    norms = [get_key(cfg, key) for key in NORM_KEYS]
    norm = next((norm for norm in norms if norm in PER_SAMPLE), None)
    gn = cfg.MODEL.GN
    groups = {"LN": 1, "IN": "one per channel", "GN": gn.NUM_GROUPS, None: None}[norm]
    if norm == "GN" and gn.NUM_GROUPS <= 0:
        groups = f"one per {gn.CHANNELS_PER_GROUP} channels"
    return {
        "format": cfg.INPUT.FORMAT,
        "pixel_mean": list(cfg.MODEL.PIXEL_MEAN),
        "pixel_std": list(cfg.MODEL.PIXEL_STD),
        "stride_in_1x1": cfg.MODEL.RESNETS.STRIDE_IN_1X1 if cfg.MODEL.RESNETS.DEPTH >= 50 else None,
        "groups": groups,
        "eps": gn.EPS if groups else None,
        "weight_standardization": bool(gn.get("WEIGHT_STANDARDIZATION")),
    }


def decoding_of(cfg: CfgNode) -> dict[str, Any]:
    """Return the config keys that decide how the outputs of a model are computed from the same tensors.

    Returns:
        {dotted key: value}, with the keys of the parts that the model of the config has. Lists are compared
        with tuples, so that the values are lists, and names of gn_det's parts are those of detectron2's.
    """
    return {key: _comparable(get_key(cfg, key)) for key in _decoding_keys(cfg)}


def _decoding_keys(cfg: CfgNode) -> Iterator[str]:
    model = cfg.MODEL
    yield from (f"MODEL.ANCHOR_GENERATOR.{key}" for key in ("NAME", "SIZES", "ASPECT_RATIOS", "ANGLES", "OFFSET"))
    if "resnet" in model.BACKBONE.NAME:
        yield "MODEL.RESNETS.RES5_DILATION"
    if "fpn" in model.BACKBONE.NAME:
        yield "MODEL.FPN.FUSE_TYPE"
    if model.META_ARCHITECTURE == "RetinaNet":
        yield from ("MODEL.RETINANET.BBOX_REG_WEIGHTS", "MODEL.RETINANET.IN_FEATURES")
        return
    yield from ("MODEL.RPN.BBOX_REG_WEIGHTS", "MODEL.RPN.IN_FEATURES")
    if model.META_ARCHITECTURE == "ProposalNetwork":
        return
    pooler = ("NAME", "POOLER_TYPE", "POOLER_RESOLUTION", "POOLER_SAMPLING_RATIO")
    yield from ("MODEL.ROI_HEADS.NAME", "MODEL.ROI_HEADS.IN_FEATURES")
    yield from (f"MODEL.ROI_BOX_HEAD.{key}" for key in (*pooler, "CLS_AGNOSTIC_BBOX_REG"))
    cascade = model.ROI_HEADS.NAME == "CascadeROIHeads"
    yield f"MODEL.{'ROI_BOX_CASCADE_HEAD' if cascade else 'ROI_BOX_HEAD'}.BBOX_REG_WEIGHTS"
    if model.MASK_ON:
        yield from (f"MODEL.ROI_MASK_HEAD.{key}" for key in (*pooler, "CLS_AGNOSTIC_MASK"))


def _comparable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_comparable(item) for item in value]
    return _STOCK_NAMES.get(value, value) if isinstance(value, str) else value


def decoding_contradiction(trained: CfgNode, cfg: CfgNode) -> str | None:
    """Return how the config of weights contradicts another one in :func:`decoding_of`; None if they agree.

    Returns:
        a clause as that of :func:`contradiction`, which names all keys that differ.
    """
    before, now = decoding_of(trained), decoding_of(cfg)
    different = [key for key in before if key in now and before[key] != now[key]]
    if not different:
        return None
    listed = ", ".join(f"{key} {before[key]} (the config has {now[key]})" for key in different)
    return f"they were trained with {listed}: set {'it' if len(different) == 1 else 'them'} as in the training"


def contradiction(recipe: dict[str, Any], cfg: CfgNode) -> str | None:
    """Return how the recipe of weights contradicts a config; None if they agree.

    Args:
        recipe: as :func:`recipe_of` returns it. Settings that are unknown are None or absent.

    Returns:
        the first difference and what to set, as a clause that calls the weights "they"; None if the
        recipe and the config agree.
    """
    recipe, config_recipe = with_current_keys(recipe), recipe_of(cfg)
    for name, (label, key) in _SETTINGS.items():
        trained, configured = recipe.get(name), config_recipe[name]
        if trained is None or configured is None:
            continue
        expected, types = _KINDS[name]
        numbers = trained if isinstance(trained, list | tuple) else ()
        if not isinstance(trained, types) or not all(map(_is_number, numbers)):
            return f"their recipe has {label} {repr(trained)[:40]!r}, which is not {expected}"
        if _agree(name, trained, configured):
            continue
        change = (
            f"set {key} to {trained}" if key else "change the norm, MODEL.GN.NUM_GROUPS or MODEL.GN.CHANNELS_PER_GROUP"
        )
        return f"they were trained with {label} {trained}, but the config has {configured}: {change}"
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _agree(name: str, trained: Any, configured: Any) -> bool:
    if name not in ("pixel_mean", "pixel_std"):
        return bool(trained == configured)
    pairs = list(zip(trained, configured, strict=False))
    if name == "pixel_mean":
        close = all(abs(a - b) <= _MEAN_TOLERANCE for a, b in pairs)
    else:
        close = all(abs(a - b) <= _STD_TOLERANCE * max(a, b) for a, b in pairs)
    return close and len(trained) == len(configured)
