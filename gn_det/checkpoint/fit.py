"""Do weights belong to a model? Both by detectron2's names, as name -> tensor."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..modeling.part_names import norm_keys, part_of

_RESNET = ("backbone", "C4 head")
_PREDICTORS = ("box predictor", "mask predictor")
RANDOM = {"classes", "partial"}  # accepted, these leave tensors random
# Counts and constants of old checkpoints, which the config or nobody needs.
_NO_WEIGHT = re.compile(r"(^|\.)(num_batches_tracked|pixel_mean|pixel_std|cell_anchors\.\d+)$")
_DEPTHS = {(2, 2, 2, 2): "18", (3, 4, 6, 3): "50", (3, 4, 23, 3): "101", (3, 8, 36, 3): "152"}


@dataclass(frozen=True)
class Fit:
    """How the weights' names and shapes compare with the model's."""

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # name -> (the weights' shape, the model's)

    @property
    def whole(self) -> bool:
        return not (self.missing or self.unexpected or self.reshaped)

    @property
    def backbone_only(self) -> bool:
        """The weights are those of a ResNet and of nothing that a detector adds."""
        names = [*self.matched, *self.unexpected, *self.reshaped]
        return bool(self.matched) and all(part_of(name) in _RESNET for name in names)


@dataclass(frozen=True)
class Problem:
    """Why weights do not belong to a model, and the word by which ``MODEL.GN.ACCEPT_WEIGHTS`` lets it pass."""

    word: str
    text: str


def is_weight(name: str) -> bool:
    """Whether the tensor of this name is learned, or is a norm's statistic."""
    return not _NO_WEIGHT.search(name)


def compare(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Fit:
    """The weights beside the model's ``state_dict``."""
    names, own = filter(is_weight, weights), list(filter(is_weight, state))
    there = {name: tuple(weights[name].shape) for name in names}
    return Fit(
        matched=[name for name in own if there.get(name) == tuple(state[name].shape)],
        missing=[name for name in own if name not in there],
        unexpected=[name for name in there if name not in state],
        reshaped={n: (there[n], s) for n in own if n in there and there[n] != (s := tuple(state[n].shape))},
    )


def report(fit: Fit) -> str:
    """Tensors by part of the model: loaded, missing, unexpected, of another shape."""
    columns = {"loaded": fit.matched, "missing": fit.missing, "unexpected": fit.unexpected, "other shape": fit.reshaped}
    counts = {title: Counter(map(part_of, names)) for title, names in columns.items()}
    parts = dict.fromkeys(part for count in counts.values() for part in count)
    rows = [[part, *(count[part] or "" for count in counts.values())] for part in parts]
    return tabulate(rows, ["part", *counts], tablefmt="github")


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that hold a NaN or an infinity."""
    return [name for name, value in weights.items() if value.is_floating_point() and not torch.isfinite(value).all()]


def find_problem(
    fit: Fit, weights: Mapping[str, Tensor], model: nn.Module, accept: Iterable[str] = (), complete: bool = False
) -> Problem | None:
    """What does not fit, the most telling first.

    Args:
        accept: words of problems that may be.
        complete: the model is used as it is loaded, so that nothing of it may stay random.
    """
    if not fit.matched:
        name = next(iter(weights), None)
        what = f"none of its {len(weights)} tensors has a name and shape of the model's ({name}, for one)"
        return Problem("", what if name else "it holds no tensors")
    accept = set(accept) - (RANDOM if complete else set())
    for problem in (_depth_problem(fit, weights), _norm_problem(fit, weights, model), _classes_problem(fit)):
        if problem and problem.word not in accept:
            return problem
    return None if "partial" in accept else _partial_problem(_unexplained(fit, accept, complete), fit)


def _unexplained(fit: Fit, accept: set[str], complete: bool) -> Fit:
    """The fit without what is as it should be, or goes with an accepted problem."""
    parts = {part_of(name) for name in (*fit.matched, *fit.missing, *fit.reshaped)}
    start = fit.backbone_only and not complete

    def fine(name: str) -> bool:
        return "norm" in accept and (".norm." in name or name.endswith(".bias"))

    return Fit(
        fit.matched,
        missing=[n for n in fit.missing if not fine(n) and not (start and part_of(n) not in _RESNET)],
        # The weights of a model with masks serve one without as well.
        unexpected=[n for n in fit.unexpected if not fine(n) and ("mask" not in part_of(n) or part_of(n) in parts)],
        reshaped={
            n: shapes for n, shapes in fit.reshaped.items() if not ("classes" in accept and part_of(n) in _PREDICTORS)
        },
    )


def _blocks(names: Iterable[str]) -> tuple[dict[str, int], bool]:
    """Residual blocks of each stage of a ResNet, and whether they are bottlenecks of three convolutions."""
    blocks: dict[str, int] = {}
    bottleneck = False
    for name in names:
        if block := re.search(r"(?:^|\.)(res[2-5])\.(\d+)\.(conv\d)\.", name):
            blocks[block[1]] = max(blocks.get(block[1], 0), int(block[2]) + 1)
            bottleneck |= block[3] == "conv3"
    return blocks, bottleneck


def _depth_problem(fit: Fit, weights: Mapping[str, Tensor]) -> Problem | None:
    theirs, three = _blocks(weights)
    ours, our_three = _blocks([*fit.matched, *fit.missing, *fit.reshaped])
    same = all(theirs[stage] == ours[stage] for stage in theirs.keys() & ours.keys())
    if not theirs or not ours or (same and three == our_three):
        return None
    return Problem(
        "partial",
        f"it is of {_resnet(theirs, three)}, and the model has {_resnet(ours, our_three)}: set MODEL.RESNETS.DEPTH",
    )


def _resnet(blocks: dict[str, int], bottleneck: bool) -> str:
    counts = tuple(blocks[stage] for stage in sorted(blocks))
    depth = next((depth for known, depth in _DEPTHS.items() if known[: len(counts)] == counts), "")
    depth = "34" if depth == "50" and not bottleneck else depth
    return f"a ResNet-{depth}" if depth else f"a ResNet with {counts} blocks"


def _norm_problem(fit: Fit, weights: Mapping[str, Tensor], model: nn.Module) -> Problem | None:
    """Norms with statistics of batches (BN and its kin) against norms without (GN, LN, IN), and norms against none."""
    layers: dict[str, list[str]] = {}
    with_statistics = "BN* folded into scale and shift" if _folded(weights) else "BN"
    for name, module in model.named_modules():
        kind = _other_norm(name, module, weights, with_statistics)
        if kind:
            layers.setdefault(kind, []).append(name)
    unnormed = [name.removesuffix(".norm.weight") for name in fit.unexpected if name.endswith(".norm.weight")]
    layers["a norm"] = [name for name in unnormed if f"{name}.weight" in fit.matched]
    theirs, names = max(layers.items(), key=lambda item: len(item[1]))
    if not names:
        return None
    where = Counter(map(part_of, names)).most_common()
    keys = [key for part, _ in where for key in norm_keys(part)]
    counts = ", ".join(f"{part} {count}" for part, count in where)
    ours = "none" if theirs == "a norm" else type(model.get_submodule(names[0])).__name__
    return Problem(
        "norm",
        f"it has {theirs} where the model has {ours} (layers: {counts}), and what the one has learned means nothing to the "
        f"other: take weights with the model's norm{f', or set {keys[0]} to theirs' if keys else ''}",
    )


def _folded(weights: Mapping[str, Tensor]) -> bool:
    """Whether the statistics say nothing: BN was folded into a fixed affine layer, as in Detectron's and MSRA's files."""
    means = [value for name, value in weights.items() if name.endswith(".running_mean")]
    variances = [value for name, value in weights.items() if name.endswith(".running_var")]
    return all(not mean.any() for mean in means) and all(bool((v - 1).abs().max() < 1e-4) for v in variances)


def _other_norm(name: str, norm: nn.Module, weights: Mapping[str, Tensor], with_statistics: str) -> str:
    """What the weights have at the place of a norm, if that is another kind."""
    scale, there = f"{name}.weight" in weights, f"{name}.running_mean" in weights
    if getattr(norm, "running_mean", None) is not None:
        if scale and not there:
            return "a norm without statistics (GN)"
        return with_statistics if there and with_statistics != "BN" and isinstance(norm, _BatchNorm) else ""
    if there:
        return with_statistics
    if not name.endswith(".norm") or scale or f"{name}.bias" in weights:
        return ""
    return "no norm" if f"{name.removesuffix('.norm')}.weight" in weights else ""


def _classes_problem(fit: Fit) -> Problem | None:
    score = fit.reshaped.get("roi_heads.box_predictor.cls_score.weight")
    if not score or score[0][1:] != score[1][1:]:
        return None
    theirs, ours = score[0][0] - 1, score[1][0] - 1
    return Problem("classes", f"it is for {theirs} classes, and MODEL.ROI_HEADS.NUM_CLASSES is {ours}")


def _partial_problem(rest: Fit, fit: Fit) -> Problem | None:
    if rest.whole:
        return None
    if fit.backbone_only and rest.missing == fit.missing:
        return Problem("partial", "it holds a backbone alone, and the rest of the model would be random")
    total = len(fit.matched) + len(fit.missing) + len(fit.reshaped)
    kinds = ((rest.missing, "are not in it"), (rest.reshaped, "have another shape in it"))
    said = [f"{len(names)} of the model's {total} tensors {what}" for names, what in kinds if names]
    if rest.unexpected:
        said.append(f"{len(rest.unexpected)} of its tensors are not in the model")
    first = [*rest.missing, *rest.reshaped, *rest.unexpected][0]
    return Problem("partial", f"{' and '.join(said)} ({first}, for one)")
