"""What weights do not hold and yet depend on: how images were prepared, where the stride is, how norms divide channels."""

from detectron2.config import CfgNode

from ..modeling.norm import NORM_KEYS, PER_SAMPLE, get_key

# Of files that are known by their names for tensors alone. Caffe2's files have the stride where detectron2's configs for
# them have it: on the 3x3 with GN, on the 1x1 with BN*, so that is left open here.
OF_ORIGIN: dict[str, dict] = {
    "Detectron": {"format": "BGR", "pixel_mean": [102.9801, 115.9465, 122.7717], "pixel_std": [1.0, 1.0, 1.0]},
    "torchvision": {
        "format": "RGB",
        "pixel_mean": [123.675, 116.28, 103.53],
        "pixel_std": [58.395, 57.12, 57.375],
        "stride_in_1x1": False,
    },
}
_MEAN_MARGIN = 2.0  # grey levels: Detectron's and detectron2's BGR means differ by less, and share weights
_STD_MARGIN = 0.05  # of the std: published ones come in two orders


def recipe_of(cfg: CfgNode) -> dict:
    """The recipe of a model that is trained by a config.

    Returns:
        {"format": "BGR" or "RGB", "pixel_mean": [3], "pixel_std": [3] (in the format's order), "stride_in_1x1": bool or
        None, "groups": how many, or in words, or None without a norm of one sample, "eps": float or None,
        "weight_standardisation": bool}
    """
    norms = [get_key(cfg, key) for key in NORM_KEYS]
    norm = next((norm for norm in norms if norm in PER_SAMPLE), None)
    gn = cfg.MODEL.GN
    groups = {"LN": 1, "IN": "one a channel", "GN": gn.NUM_GROUPS, None: None}[norm]
    if norm == "GN" and gn.NUM_GROUPS <= 0:
        groups = f"one for {gn.CHANNELS_PER_GROUP} channels"
    return {
        "format": cfg.INPUT.FORMAT,
        "pixel_mean": list(cfg.MODEL.PIXEL_MEAN),
        "pixel_std": list(cfg.MODEL.PIXEL_STD),
        "stride_in_1x1": cfg.MODEL.RESNETS.STRIDE_IN_1X1 if cfg.MODEL.RESNETS.DEPTH >= 50 else None,
        "groups": groups,
        "eps": gn.EPS if groups else None,
        "weight_standardisation": bool(gn.get("WEIGHT_STANDARDIZATION")),
    }


def contradiction(theirs: dict, cfg: CfgNode) -> str | None:
    """Where the recipe of weights and a config differ, as a clause with what to set; None where they agree.

    Args:
        theirs: as :func:`recipe_of` gives it; what is not known is left out or None.
    """
    ours = recipe_of(cfg)
    for what, key in _KEYS.items():
        a, b = theirs.get(what), ours[what]
        if a is None or b is None or _same(what, a, b):
            continue
        return f"it was trained with {_WORDS[what]} {_text(a)}, and the config has {_text(b)}: set {key} to it"
    return None


_KEYS = {
    "format": "INPUT.FORMAT",
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
    "stride_in_1x1": "MODEL.RESNETS.STRIDE_IN_1X1",
    "groups": "the norm or MODEL.GN.NUM_GROUPS",
    "eps": "MODEL.GN.EPS",
    "weight_standardisation": "MODEL.GN.WEIGHT_STANDARDIZATION",
}
_WORDS = {
    "format": "images in",
    "pixel_mean": "the pixel mean",
    "pixel_std": "the pixel std",
    "stride_in_1x1": "a stride in the 1x1 convolution:",
    "groups": "groups:",
    "eps": "eps",
    "weight_standardisation": "weight standardisation:",
}


def _same(what: str, a, b) -> bool:
    if what == "pixel_mean":
        return all(abs(x - y) <= _MEAN_MARGIN for x, y in zip(a, b, strict=True))
    if what == "pixel_std":
        return all(abs(x - y) <= _STD_MARGIN * max(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def _text(value: object) -> str:
    return "[" + ", ".join(f"{x:g}" for x in value) + "]" if isinstance(value, list) else str(value)
