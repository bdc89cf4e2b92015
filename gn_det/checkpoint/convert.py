"""Weights in anybody's names -> detectron2's names -> the names of a model."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ..errors import GNDetError
from . import detectron, mmdetection, torchvision
from .mapping import Converted, KeyMap, any_starts, apply

ORIGIN = "detectron2"
_STEM = "stem.conv1.weight"
# Names that one origin has and those below it have not.
_SIGNS = (
    (detectron.ORIGIN, r"(res_)?conv1_(w|[bg]n_\w+)|res\d_\d+_branch\w+"),
    (mmdetection.ORIGIN, r"backbone\.(conv1|layer\d\.0)\..*|gn1\.weight"),
    (torchvision.ORIGIN, r"layer\d\.0\..*"),
    (ORIGIN, r"(backbone\.bottom_up|backbone\.stem|proposal_generator|stem|res\d\.0)\..*"),
)


def origin_of(names: Iterable[str]) -> str:
    """Whose names these are: "Detectron", "mmdetection", "torchvision" or "detectron2".

    Raises:
        GNDetError: nobody's that is known here.
    """
    names = _without_module(names)
    for origin, pattern in _SIGNS:
        if any(re.fullmatch(pattern, name) for name in names):
            return origin
    raise GNDetError(
        f"These weights have names of no origin that is known here ({', '.join(list(names)[:3])}, ...): Detectron's, "
        "detectron2's, mmdetection's, and those of a ResNet of torchvision's or timm's are."
    )


def convert(weights: Mapping[str, Tensor]) -> Converted:
    """Weights in detectron2's names, from those of Detectron, mmdetection, torchvision, timm or detectron2.

    Raises:
        GNDetError: the names are of none of them, or a tensor has a shape that cannot be.
    """
    origin, source_of = origin_of(weights), _without_module(weights)
    weights = {name: weights[source] for name, source in source_of.items()}
    if origin == detectron.ORIGIN:
        done = detectron.from_detectron(weights)
    elif origin == mmdetection.ORIGIN:
        done = mmdetection.from_mmdetection(weights)
    elif origin == torchvision.ORIGIN:
        done = torchvision.from_torchvision(weights)
    else:
        relative = not any_starts(weights, "backbone.", "proposal_generator.", "roi_heads.")
        done = apply(KeyMap(lambda name: name, _why_dropped), weights, ORIGIN, relative)
    return Converted(
        done.weights,
        done.origin,
        done.backbone_only,
        {name: source_of.get(source, source) for name, source in done.sources.items()},
        {source_of[name]: reason for name, reason in done.dropped.items()},
        [source_of[name] for name in done.leftover],
    )


def _without_module(names: Iterable[str]) -> dict[str, str]:
    """Name without the ``module.`` of a model that was trained in parallel -> name as it is."""
    names = list(names)
    prefix = "module." if names and all(name.startswith("module.") for name in names) else ""
    return {name.removeprefix(prefix): name for name in names}


def _why_dropped(name: str) -> str:
    if name in ("pixel_mean", "pixel_std"):
        return "the config's, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD"
    if "anchor_generator.cell_anchors" in name:
        return "anchors, which the config gives"
    return "classifier of ImageNet" if name in ("stem.fc.weight", "stem.fc.bias") else ""


def place(weights: Mapping[str, Tensor], model_names: Iterable[str]) -> dict[str, Tensor]:
    """A backbone's weights, by name within the ResNet, under the names that they have in a model.

    With FPN that is ``backbone.bottom_up.``, with C4 ``backbone.``, and for its res5 ``roi_heads.``; a ResNet alone has no
    prefix. Names that the model has not get the prefix as well. A whole detector's weights stay as they are.

    Raises:
        GNDetError: there is no ResNet in the model.
    """
    if any_starts(weights, "backbone.", "proposal_generator.", "roi_heads."):
        return dict(weights)
    model_names = set(model_names)
    prefix = next((name.removesuffix(_STEM) for name in sorted(model_names) if name.endswith(_STEM)), None)
    if prefix is None:
        raise GNDetError("These weights are a ResNet's, and the model has none: it has no layer named stem.conv1.")
    in_head = any_starts(model_names, "roi_heads.res5.")
    return {
        (("roi_heads." if in_head and name.startswith("res5.") else prefix) + name): weights[name] for name in weights
    }
