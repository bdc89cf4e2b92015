"""What a training is, said once at its start: data, schedule, model."""

import dataclasses
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn

from ..modeling.norm import is_norm, norm_name
from ..modeling.part_names import PARTS, part_of

_WIDTH = 79  # characters of a line: a terminal's usual 80
_MOST_CLASSES = 12  # with more, only the _SHOWN most and least frequent have a row
_SHOWN = 4


@dataclasses.dataclass
class Counts:
    """Of a data set: images, and of each class by its index the objects (no crowds) and the images that have some."""

    images: int
    empty: int
    objects: Counter[int]
    images_with: Counter[int]


def count(rows: Iterable[dict]) -> Counts:
    """Count detectron2's rows of a data set."""
    counts = Counts(0, 0, Counter(), Counter())
    for row in rows:
        classes = [a["category_id"] for a in row.get("annotations", []) if not a.get("iscrowd")]
        counts.images += 1
        counts.empty += not classes
        counts.objects.update(classes)
        counts.images_with.update(set(classes))
    return counts


def overview(given: CfgNode, cfg: CfgNode, model: nn.Module, train: Counts | None, start_iter: int = 0) -> str:
    """The text of it, in lines of 79 characters.

    Args:
        given: the config before detectron2 scaled it to the number of processes.
        cfg: the config that is trained.
        train: of the training set, before images without objects are left out; None where that is not known.
    """
    test = count(row for name in cfg.DATASETS.TEST for row in DatasetCatalog.get(name))
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", [])
    tables = [_class_table(names, train, test)] if train and names else []
    unseen = [name for index, name in enumerate(names) if train and not train.objects[index]]
    tables += [_facts(given, cfg, train, test, unseen, start_iter), _part_table(model)]
    return "\n\n".join([f"What is trained: {cfg.MODEL.GN.CONFIG or 'a model'}", *tables])


def _class_table(names: Sequence[str], train: Counts, test: Counts) -> str:
    order = sorted(range(len(names)), key=lambda index: -train.objects[index])
    sides = [train, test] if test.images else [train]

    def row(index: int) -> list:
        numbers = [n for side in sides for n in (side.images_with[index], side.objects[index])]
        return [textwrap.shorten(names[index], 28, placeholder="..."), *numbers]

    if len(names) <= _MOST_CLASSES:
        rows = [row(index) for index in order]
    else:
        folded = order[_SHOWN:-_SHOWN]
        sums = [n for side in sides for n in (None, sum(side.objects[i] for i in folded))]
        rows = [row(i) for i in order[:_SHOWN]] + [[f"... {len(folded)} more", *sums]]
        rows += [row(i) for i in order[-_SHOWN:]]
    if len(names) > 1:
        rows.append(["all", *(n for side in sides for n in (side.images - side.empty, side.objects.total()))])
    headers = ["class", "train images", "objects", "test images", "objects"][: 1 + 2 * len(sides)]
    return tabulate(rows, headers, tablefmt="simple", disable_numparse=[0])


def _facts(
    given: CfgNode, cfg: CfgNode, train: Counts | None, test: Counts, unseen: Sequence[str], start_iter: int
) -> str:
    solver = cfg.SOLVER
    kept = train and train.images - (train.empty if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS else 0)
    epochs = f" = {solver.MAX_ITER * solver.IMS_PER_BATCH / kept:.1f} epochs of {kept} images" if kept else ""
    facts = {
        "training set": f"{', '.join(cfg.DATASETS.TRAIN)}{_empty(cfg, train)}",
        "no objects of": ", ".join(unseen[:_MOST_CLASSES]) + f", ... ({len(unseen)})" * (len(unseen) > _MOST_CLASSES),
        "test set": _test_text(cfg, test),
        "weights": cfg.MODEL.WEIGHTS or "random: from scratch",
        "batch": _batch_text(cfg),
        "length": f"{solver.MAX_ITER} iterations{epochs}" + (f"; goes on from {start_iter}" if start_iter else ""),
        "learning rate": _rate_text(given, cfg),
        "schedule": _schedule_text(cfg),
        "switches": _switch_text(cfg),
    }
    indent = " " * 15
    lines = [
        textwrap.fill(f"{key:<15}{value}", _WIDTH, subsequent_indent=indent) for key, value in facts.items() if value
    ]
    return "\n".join(lines)


def _batch_text(cfg: CfgNode) -> str:
    images, processes, parts = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size(), cfg.TRAIN.ACCUMULATE
    each = images // processes
    at_a_time = f", {each // parts} at a time" if parts > 1 else ""
    if processes > 1:
        return f"{images} images an iteration: {each} on each of {processes} processes{at_a_time}"
    return f"{images} images an iteration{at_a_time}, on one process"


def _empty(cfg: CfgNode, train: Counts | None) -> str:
    if not train or not train.empty:
        return ""
    fate = "left out" if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS else "kept"
    return f"; {train.empty} of {train.images} images have no objects and are {fate}"


def _test_text(cfg: CfgNode, test: Counts) -> str:
    if not cfg.DATASETS.TEST:
        return "none: nothing is evaluated"
    when = f"every {cfg.TEST.EVAL_PERIOD} iterations and " if cfg.TEST.EVAL_PERIOD > 0 else ""
    return f"{', '.join(cfg.DATASETS.TEST)}, {test.images} images; evaluated {when}at the end"


def _rate_text(given: CfgNode, cfg: CfgNode) -> str:
    old, processes = given.SOLVER.REFERENCE_WORLD_SIZE, comm.get_world_size()
    if old in (0, processes):
        why = "SOLVER.REFERENCE_WORLD_SIZE is 0" if not old else f"it was made for {old} processes, and there are {old}"
        return f"{cfg.SOLVER.BASE_LR:g} as given, not scaled: {why}"
    return (
        f"{given.SOLVER.BASE_LR:g} -> {cfg.SOLVER.BASE_LR:g}: scaled by the linear rule from SOLVER.REFERENCE_WORLD_SIZE "
        f"{old} to {processes} processes, with {old / processes:g}x the iterations"
    )


def _schedule_text(cfg: CfgNode) -> str:
    solver = cfg.SOLVER
    parts = []
    if solver.WARMUP_ITERS:
        parts.append(
            f"{solver.WARMUP_METHOD} warm-up from x{solver.WARMUP_FACTOR:g} over {solver.WARMUP_ITERS} iterations"
        )
    steps = [str(step) for step in solver.STEPS if step <= solver.MAX_ITER]
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        parts.append(f"x{solver.GAMMA:g} at {', '.join(steps)}" if steps else "no steps")
    elif solver.LR_SCHEDULER_NAME == "WarmupCosineLR":
        parts.append(f"cosine to {solver.BASE_LR_END:g}")
    else:
        parts.append(solver.LR_SCHEDULER_NAME)
    return "; ".join(parts)


def _switch_text(cfg: CfgNode) -> str:
    train = cfg.TRAIN
    switches = {
        f"weights averaged with decay {train.EMA.DECAY:g}": train.EMA.ENABLED,
        f"best by {train.METRIC} kept": train.BEST,
        f"early stop by {train.METRIC} with patience {train.EARLY_STOP.PATIENCE}": train.EARLY_STOP.PATIENCE,
        "Weights & Biases": train.WANDB.ENABLED,
        f"mixed precision in {train.AMP_DTYPE}": cfg.SOLVER.AMP.ENABLED,
        "activations of the ResNet computed twice": train.CHECKPOINT_ACTIVATIONS,
        "channels last": train.CHANNELS_LAST,
        "backbone compiled": train.COMPILE,
    }
    return "; ".join(text for text, on in switches.items() if on)


def _part_table(model: nn.Module) -> str:
    """Parameters in millions and norms, by part of the model."""
    trained, frozen, norms = Counter[str](), Counter[str](), dict[str, list[nn.Module]]()
    for name, parameter in model.named_parameters():
        (trained if parameter.requires_grad else frozen)[_part(name)] += parameter.numel()
    for name, module in model.named_modules():
        if is_norm(module):
            norms.setdefault(_part(name), []).append(module)
    order = [part for _, part, _ in PARTS]
    parts = sorted({*trained, *frozen}, key=lambda part: order.index(part) if part in order else len(order))
    rows = [[part, trained[part] / 1e6, frozen[part] / 1e6, norms_text(norms.get(part, []))] for part in parts]
    rows.append(["all", trained.total() / 1e6, frozen.total() / 1e6, ""])
    return tabulate(rows, ["part", "trained (M)", "frozen (M)", "norms"], tablefmt="simple", floatfmt=".2f")


def _part(name: str) -> str:
    """A head and its predictor are one row."""
    return part_of(name).replace("predictor", "head")


def norms_text(norms: Sequence[nn.Module]) -> str:
    """``69 GN of 32 groups``; the kinds as the paper names them, with the number of layers of each."""
    kinds = Counter("BN*" if norm_name(norm) == "FrozenBN" else norm_name(norm) for norm in norms)
    groups = sorted({norm.num_groups for norm in norms if isinstance(norm, nn.GroupNorm) and norm_name(norm) == "GN"})
    each = f" of {' or '.join(map(str, groups))} group{'s' * (groups != [1])}"
    return ", ".join(f"{number} {kind}{each if kind == 'GN' else ''}" for kind, number in kinds.items()) or "none"
