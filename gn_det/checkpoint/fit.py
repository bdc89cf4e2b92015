"""Compare weights with a model by tensor names, shapes and norms, and find out why they do not fit.

Weights and models are in detectron2's names. "Learned" tensors are parameters and the running
statistics of norms.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tabulate import tabulate
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..modeling.part_names import norm_keys, part_of

_RESNET = ("backbone", "C4 head")
_PREDICTORS = ("box predictor", "mask predictor")
#: Problems that, if accepted, leave tensors of the model at their random initial values.
LEAVES_RANDOM = {"classes", "partial"}
# Counters, and constants in old checkpoints that the config sets.
_NOT_LEARNED = re.compile(r"(^|\.)(num_batches_tracked|pixel_mean|pixel_std|cell_anchors\.\d+)$")
_DEPTHS = {(2, 2, 2, 2): "18", (3, 4, 6, 3): "50", (3, 4, 23, 3): "101", (3, 8, 36, 3): "152"}  # by blocks per stage


@dataclass(frozen=True)
class Fit:
    """The names of learned tensors in weights and in a model, grouped by whether they match.

    Attributes:
        matched: in both, with the same shape.
        missing: in the model only.
        unexpected: in the weights only.
        reshaped: in both, with different shapes: {name: (shape in the weights, shape in the model)}.
    """

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def exact(self) -> bool:
        """Whether all tensors match."""
        return not (self.missing or self.unexpected or self.reshaped)

    @property
    def backbone_only(self) -> bool:
        """Whether the weights have tensors of a ResNet and of no other part of a detector."""
        names = [*self.matched, *self.unexpected, *self.reshaped]
        return bool(self.matched) and all(part_of(name) in _RESNET for name in names)


@dataclass(frozen=True)
class Problem:
    """The reason why weights do not fit a model.

    Attributes:
        word: the word by which ``MODEL.GN.ACCEPT_WEIGHTS`` accepts the problem: "norm" (another kind
            of norm), "classes" (another number of classes), "partial" (another depth, or missing,
            unexpected or reshaped tensors) or "recipe" (:mod:`gn_det.checkpoint.recipe`); "" if the
            problem cannot be accepted.
        text: what is wrong, as a clause that calls the weights "they".
    """

    word: str
    text: str


def is_learned(name: str) -> bool:
    """Return whether the tensor with this name is a parameter or a running statistic of a norm."""
    return not _NOT_LEARNED.search(name)


def compare(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Fit:
    """Compare the names and shapes of weights with those of a model's state dict."""
    model_names = list(filter(is_learned, state))
    shapes = {name: tuple(value.shape) for name, value in weights.items() if is_learned(name)}
    return Fit(
        matched=[name for name in model_names if shapes.get(name) == tuple(state[name].shape)],
        missing=[name for name in model_names if name not in shapes],
        unexpected=[name for name in shapes if name not in state],
        reshaped={
            name: (shapes[name], shape)
            for name in model_names
            if name in shapes and shapes[name] != (shape := tuple(state[name].shape))
        },
    )


def report(fit: Fit) -> str:
    """Return a table of the loaded, missing, unexpected and reshaped tensors per part of the model."""
    columns = {"loaded": fit.matched, "missing": fit.missing, "unexpected": fit.unexpected, "other shape": fit.reshaped}
    counts = {title: Counter(map(part_of, names)) for title, names in columns.items()}
    parts = dict.fromkeys(part for count in counts.values() for part in count)
    rows = [[part, *(count[part] or "" for count in counts.values())] for part in parts]
    return tabulate(rows, ["part", *counts], tablefmt="github")


def quantized(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that have integers or 8-bit floats where the model has floats."""
    return [
        name
        for name, value in weights.items()
        if name in state
        and is_learned(name)
        and state[name].is_floating_point()
        and not (value.is_floating_point() and value.element_size() >= 2)
    ]


def find_problem(
    fit: Fit, weights: Mapping[str, Tensor], model: nn.Module, accept: Iterable[str] = (), complete: bool = False
) -> Problem | None:
    """Return the most specific reason why weights do not fit a model; None if they fit.

    Args:
        fit: the result of :func:`compare` for ``weights`` and the state dict of ``model``.
        accept: the words of problems to ignore, as in ``MODEL.GN.ACCEPT_WEIGHTS``.
        complete: require every tensor of the model, as for evaluation. Otherwise the weights of a
            backbone alone fit, and problems that leave tensors random can be accepted.
    """
    if not fit.matched:
        if not weights:
            return Problem("", "they have no tensors")
        return Problem(
            "",
            f"none of their {len(weights)} tensors has the name and shape of a tensor of the model ({_example(weights)})",
        )
    accept = set(accept) - (LEAVES_RANDOM if complete else set())
    for problem in (_depth_problem(fit, weights), _norm_problem(fit, weights, model), _classes_problem(fit)):
        if problem and problem.word not in accept:
            return problem
    return None if "partial" in accept else _partial_problem(_without_accepted(fit, accept, complete), fit)


def _without_accepted(fit: Fit, accept: set[str], complete: bool) -> Fit:
    """Return the fit without the differences that are no problem or belong to an accepted one."""
    parts = {part_of(name) for name in (*fit.matched, *fit.missing, *fit.reshaped)}
    heads_may_be_missing = fit.backbone_only and not complete

    def accepted(name: str) -> bool:
        # Without a norm, detectron2's convolutions have a bias, and with one they have none.
        return "norm" in accept and (".norm." in name or name.endswith(".bias"))

    return Fit(
        fit.matched,
        missing=[
            name
            for name in fit.missing
            if not accepted(name) and not (heads_may_be_missing and part_of(name) not in _RESNET)
        ],
        # The weights of a model with masks also fit a model without.
        unexpected=[
            name
            for name in fit.unexpected
            if not accepted(name) and ("mask" not in part_of(name) or part_of(name) in parts)
        ],
        reshaped={
            name: shapes
            for name, shapes in fit.reshaped.items()
            if not ("classes" in accept and part_of(name) in _PREDICTORS)
        },
    )


def _count_blocks(names: Iterable[str]) -> tuple[dict[str, int], bool]:
    """Return the number of residual blocks per stage, and whether they are bottlenecks (3 convolutions)."""
    blocks: dict[str, int] = {}
    bottleneck = False
    for name in names:
        if block := re.search(r"(?:^|\.)(res[2-5])\.(\d+)\.(conv\d)\.", name):
            blocks[block[1]] = max(blocks.get(block[1], 0), int(block[2]) + 1)
            bottleneck |= block[3] == "conv3"
    return blocks, bottleneck


def _depth_problem(fit: Fit, weights: Mapping[str, Tensor]) -> Problem | None:
    weights_blocks, weights_bottleneck = _count_blocks(weights)
    model_blocks, model_bottleneck = _count_blocks([*fit.matched, *fit.missing, *fit.reshaped])
    shared = weights_blocks.keys() & model_blocks.keys()
    same = weights_bottleneck == model_bottleneck and all(weights_blocks[s] == model_blocks[s] for s in shared)
    if not weights_blocks or not model_blocks or same:
        return None
    return Problem(
        "partial",
        f"they are for {_resnet_name(weights_blocks, weights_bottleneck)}, but the model has "
        f"{_resnet_name(model_blocks, model_bottleneck)}: set MODEL.RESNETS.DEPTH to that of the weights",
    )


def _resnet_name(blocks: dict[str, int], bottleneck: bool) -> str:
    counts = tuple(blocks[stage] for stage in sorted(blocks))
    depth = next((depth for known, depth in _DEPTHS.items() if known[: len(counts)] == counts), "")
    depth = "34" if depth == "50" and not bottleneck else depth
    return f"a ResNet-{depth}" if depth else f"a ResNet with {counts} blocks"


def _norm_problem(fit: Fit, weights: Mapping[str, Tensor], model: nn.Module) -> Problem | None:
    """Return a problem if norms are in different layers or of different kinds.

    The kinds are norms with running statistics (BN) and without (GN, LN, IN). Of several
    differences, the one with the most layers is returned.
    """
    layers: dict[str, list[str]] = {}  # what the weights have instead of the model's norm -> names of the norms
    with_statistics = "BN* folded into scale and shift" if _is_folded(weights) else "BN"
    for name, module in model.named_modules():
        kind = _other_norm(name, module, weights, with_statistics)
        if kind:
            layers.setdefault(kind, []).append(name)
    extra_norms = [name.removesuffix(".norm.weight") for name in fit.unexpected if name.endswith(".norm.weight")]
    layers["a norm"] = [name for name in extra_norms if f"{name}.weight" in fit.matched]
    weights_norm, names = max(layers.items(), key=lambda item: len(item[1]))
    if not names:
        return None
    model_norm = "none" if weights_norm == "a norm" else type(model.get_submodule(names[0])).__name__
    part_counts = Counter(map(part_of, names)).most_common()
    counts = ", ".join(f"{part} {count}" for part, count in part_counts)
    keys = [key for part, _ in part_counts for key in norm_keys(part)]
    hint = f", or set {keys[0]} to that of the weights" if keys else ""
    return Problem(
        "norm",
        f"they have {weights_norm} where the model has {model_norm} (layers: {counts}), and parameters that were learned "
        f"with one are wrong with the other: use weights with the norm of the model{hint}",
    )


def _is_folded(weights: Mapping[str, Tensor]) -> bool:
    """Return whether the running statistics are all 0 and 1: BN folded into a fixed scale and shift.

    The files of Detectron and MSRA are like this.
    """
    means = [value for name, value in weights.items() if name.endswith(".running_mean")]
    variances = [value for name, value in weights.items() if name.endswith(".running_var")]
    return all(not mean.any() for mean in means) and all(bool((v - 1).abs().max() < 1e-4) for v in variances)


def _other_norm(name: str, norm: nn.Module, weights: Mapping[str, Tensor], with_statistics: str) -> str:
    """Return what the weights have instead of a norm of the model; "" if they have the same kind.

    Args:
        name, norm: a module of the model and its name. Modules that are no norm give "".
        with_statistics: what the result calls a norm with running statistics.
    """
    has_scale, has_mean = f"{name}.weight" in weights, f"{name}.running_mean" in weights
    if getattr(norm, "running_mean", None) is not None:
        if has_scale and not has_mean:
            return "a norm without statistics (GN)"
        return with_statistics if has_mean and with_statistics != "BN" and isinstance(norm, _BatchNorm) else ""
    if has_mean:
        return with_statistics
    if not name.endswith(".norm") or has_scale or f"{name}.bias" in weights:
        return ""
    return "no norm" if f"{name.removesuffix('.norm')}.weight" in weights else ""


def _classes_problem(fit: Fit) -> Problem | None:
    shapes = fit.reshaped.get("roi_heads.box_predictor.cls_score.weight")
    if not shapes or shapes[0][1:] != shapes[1][1:]:
        return None
    weights_classes, model_classes = (shape[0] - 1 for shape in shapes)  # without the background
    return Problem(
        "classes", f"they are for {weights_classes} classes, but MODEL.ROI_HEADS.NUM_CLASSES is {model_classes}"
    )


def _partial_problem(rest: Fit, fit: Fit) -> Problem | None:
    if rest.exact:
        return None
    if fit.backbone_only and rest.missing == fit.missing:
        return Problem("partial", "they contain only a backbone, and the rest of the model would be random")
    total = len(fit.matched) + len(fit.missing) + len(fit.reshaped)
    clauses = [f"lack {len(rest.missing)} of the model's {total} tensors"] * bool(rest.missing)
    clauses += [f"have {len(rest.reshaped)} of the model's {total} tensors in another shape"] * bool(rest.reshaped)
    clauses += [f"have {len(rest.unexpected)} tensors that the model does not have"] * bool(rest.unexpected)
    return Problem(
        "partial", f"they {' and '.join(clauses)} ({_example([*rest.missing, *rest.reshaped, *rest.unexpected])})"
    )


def _example(names: Iterable[str]) -> str:
    return f"for example {next(iter(names))}"
