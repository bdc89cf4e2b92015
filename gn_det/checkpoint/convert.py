"""Convert weights of Detectron, mmdetection, torchvision and timm to detectron2's names."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ..errors import GNDetError
from . import detectron, mmdetection, torchvision
from .mapping import Converted, KeyMap, any_starts, apply

ORIGIN = "detectron2"
_STEM = "stem.conv1.weight"
_PREFIXES = ("module.", "model.")
# Names by which an origin is recognized. They are tried in this order: each pattern matches no
# names of the origins below.
_ORIGIN_PATTERNS = (
    (detectron.ORIGIN, r"(res_)?conv1_(w|[bg]n_\w+)|res\d_\d+_branch\w+"),
    (mmdetection.ORIGIN, r"backbone\.(conv1|layer\d\.0)\..*|gn1\.weight"),
    (torchvision.ORIGIN, r"layer\d\.0\..*"),
    (ORIGIN, r"(backbone\.bottom_up|backbone\.stem|proposal_generator|stem|res\d\.0)\..*"),
)


def origin_of(names: Iterable[str]) -> str:
    """Return the project that uses these tensor names.

    Returns:
        "Detectron", "mmdetection", "torchvision" (timm's names are the same) or "detectron2".

    Raises:
        GNDetError: the names are of no known project.
    """
    names = plain_names(names)
    for origin, pattern in _ORIGIN_PATTERNS:
        if any(re.fullmatch(pattern, name) for name in names):
            return origin
    raise GNDetError(
        f"The weights have unknown tensor names ({', '.join(list(names)[:3])}, ...): use weights of Detectron, detectron2 "
        "or mmdetection, or of a ResNet of torchvision or timm."
    )


def convert(weights: Mapping[str, Tensor]) -> Converted:
    """Convert weights of Detectron, mmdetection, torchvision, timm or detectron2 to detectron2's names.

    Args:
        weights: {name: tensor}, with or without the prefixes of :func:`plain_names`.

    Raises:
        GNDetError: the names are of no known project, or a tensor has an impossible shape.
    """
    origin, original_names = origin_of(weights), plain_names(weights)
    weights = {name: weights[original] for name, original in original_names.items()}
    if origin == detectron.ORIGIN:
        result = detectron.from_detectron(weights)
    elif origin == mmdetection.ORIGIN:
        result = mmdetection.from_mmdetection(weights)
    elif origin == torchvision.ORIGIN:
        result = torchvision.from_torchvision(weights)
    else:
        backbone_only = not any_starts(weights, "backbone.", "proposal_generator.", "roi_heads.")
        result = apply(KeyMap(lambda name: name, _why_dropped), weights, ORIGIN, backbone_only)
    return Converted(
        result.weights,
        result.origin,
        result.backbone_only,
        {name: original_names.get(source, source) for name, source in result.sources.items()},
        {original_names[name]: reason for name, reason in result.dropped.items()},
        [original_names[name] for name in result.leftover],
    )


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Return {name without the prefixes of wrapped models: name}.

    ``_orig_mod.``, which ``torch.compile`` adds to a module, is removed everywhere. ``module.`` (parallel models) and
    ``model.`` (Lightning) are removed at the start, in any order, if all names have them.
    """
    names = list(names)
    plain = [name.replace("_orig_mod.", "") for name in names]
    while prefix := next((p for p in _PREFIXES if plain and all(name.startswith(p) for name in plain)), ""):
        plain = [name.removeprefix(prefix) for name in plain]
    unique = len(set(plain)) == len(names)
    return dict(zip(plain if unique else names, names, strict=True))


def _why_dropped(name: str) -> str:
    if name in ("pixel_mean", "pixel_std"):
        return "set by the config (MODEL.PIXEL_MEAN, MODEL.PIXEL_STD)"
    if "anchor_generator.cell_anchors" in name:
        return "anchors, which follow from the config"
    return "ImageNet classifier" if name in ("stem.fc.weight", "stem.fc.bias") else ""


def place(weights: Mapping[str, Tensor], model_names: Iterable[str]) -> dict[str, Tensor]:
    """Rename the weights of a ResNet to the names that they have in a model.

    The prefix is ``backbone.bottom_up.`` with FPN, ``backbone.`` with C4 (``roi_heads.`` for its
    res5), and none in a ResNet alone. Names that the model does not have get the prefix as well.
    The weights of a whole detector keep their names.

    Args:
        weights: in detectron2's names, as :func:`convert` returns them.
        model_names: the keys of the model's state dict.

    Raises:
        GNDetError: the model has no ResNet.
    """
    if any_starts(weights, "backbone.", "proposal_generator.", "roi_heads."):
        return dict(weights)
    model_names = set(model_names)
    prefix = next((name.removesuffix(_STEM) for name in sorted(model_names) if name.endswith(_STEM)), None)
    if prefix is None:
        raise GNDetError(
            "The weights are those of a ResNet, but the model has no ResNet (no layer named stem.conv1): use other weights."
        )
    in_head = any_starts(model_names, "roi_heads.res5.")
    return {
        (("roi_heads." if in_head and name.startswith("res5.") else prefix) + name): weights[name] for name in weights
    }
