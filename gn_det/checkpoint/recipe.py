"""Compare the training recipe of weights (color order, pixel mean, stride, groups, eps, ...) with a config.

The tensors do not contain these settings, but the weights give wrong results in a model with others.
"""

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
        if trained is None or configured is None or _agree(name, trained, configured):
            continue
        change = (
            f"set {key} to {trained}" if key else "change the norm, MODEL.GN.NUM_GROUPS or MODEL.GN.CHANNELS_PER_GROUP"
        )
        return f"they were trained with {label} {trained}, but the config has {configured}: {change}"
    return None


def _agree(name: str, trained: Any, configured: Any) -> bool:
    if name == "pixel_mean":
        return all(abs(a - b) <= _MEAN_TOLERANCE for a, b in zip(trained, configured, strict=True))
    if name == "pixel_std":
        return all(abs(a - b) <= _STD_TOLERANCE * max(a, b) for a, b in zip(trained, configured, strict=True))
    return bool(trained == configured)
