"""Summary of data, schedule and model that is logged when training starts."""

import dataclasses
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn

from ..acceleration.precision import training_precision
from ..modeling.norm import is_norm, norm_name
from ..modeling.part_names import PARTS, part_of

_WIDTH = 79  # characters per line: fits a terminal of 80 columns
_LABEL_WIDTH = 15
_MAX_CLASSES = 12  # with more classes, only the _SHOWN most and the _SHOWN least frequent get a row
_SHOWN = 4


@dataclasses.dataclass
class Counts:
    """Numbers of images and objects of a dataset. Crowds are not counted.

    Attributes:
        images: number of images.
        empty: number of images without objects.
        objects: number of objects per class index.
        images_with: number of images with at least one object of the class, per class index.
        most: largest number of objects in an image.
    """

    images: int
    empty: int
    objects: Counter[int]
    images_with: Counter[int]
    most: int = 0


def count_objects(records: Iterable[dict]) -> Counts:
    """Count images and objects in a dataset in detectron2's format (one dict per image)."""
    counts = Counts(0, 0, Counter(), Counter())
    for record in records:
        classes = [a["category_id"] for a in record.get("annotations", []) if not a.get("iscrowd")]
        counts.images += 1
        counts.empty += not classes
        counts.objects.update(classes)
        counts.images_with.update(set(classes))
        counts.most = max(counts.most, len(classes))
    return counts


def format_overview(
    original_cfg: CfgNode, cfg: CfgNode, model: nn.Module, train: Counts | None, start_iter: int = 0
) -> str:
    """Return the summary as text, with lines of at most 79 characters.

    Args:
        original_cfg: config before detectron2 scaled it to the number of processes.
        cfg: config after scaling, with which the model is trained.
        model: model that is trained.
        train: counts of the training set, including images without objects; None if not known.
        start_iter: iterations that were trained before, for a resumed run.
    """
    test = count_objects(record for name in cfg.DATASETS.TEST for record in DatasetCatalog.get(name))
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", [])
    tables = [_class_table(names, train, test)] if train and names else []
    empty_classes = [name for index, name in enumerate(names) if train and not train.objects[index]]
    tables += [_settings(original_cfg, cfg, train, test, empty_classes, start_iter), _part_table(model)]
    return "\n\n".join([f"Training overview: {cfg.MODEL.GN.CONFIG or 'model'}", *tables])


def _class_table(names: Sequence[str], train: Counts, test: Counts) -> str:
    order = sorted(range(len(names)), key=lambda index: -train.objects[index])
    splits = [train, test] if test.images else [train]

    def row(index: int) -> list:
        numbers = [n for split in splits for n in (split.images_with[index], split.objects[index])]
        return [textwrap.shorten(names[index], 28, placeholder="..."), *numbers]

    if len(names) <= _MAX_CLASSES:
        rows = [row(index) for index in order]
    else:
        hidden = order[_SHOWN:-_SHOWN]
        sums = [n for split in splits for n in (None, sum(split.objects[i] for i in hidden))]
        rows = [row(i) for i in order[:_SHOWN]] + [[f"... {len(hidden)} more", *sums]]
        rows += [row(i) for i in order[-_SHOWN:]]
    if len(names) > 1:
        totals = [n for split in splits for n in (split.images - split.empty, split.objects.total())]
        rows.append(["all", *totals])
    headers = ["class", "train images", "objects", "test images", "objects"][: 1 + 2 * len(splits)]
    return tabulate(rows, headers, tablefmt="simple", disable_numparse=[0])


def _settings(
    original_cfg: CfgNode,
    cfg: CfgNode,
    train: Counts | None,
    test: Counts,
    empty_classes: Sequence[str],
    start_iter: int,
) -> str:
    more_classes = f", ... ({len(empty_classes)})" if len(empty_classes) > _MAX_CLASSES else ""
    settings = {
        "training set": f"{', '.join(cfg.DATASETS.TRAIN)}{_empty_images(cfg, train)}",
        "empty classes": ", ".join(empty_classes[:_MAX_CLASSES]) + more_classes,
        "test set": _test_set(cfg, test),
        "weights": cfg.MODEL.WEIGHTS or "random (from scratch)",
        "batch": _batch(cfg),
        "length": _length(cfg, train, start_iter),
        "learning rate": _learning_rate(original_cfg, cfg),
        "schedule": _schedule(cfg),
        "options": _options(cfg),
        "speed": _speed(cfg),
    }
    lines = [
        textwrap.fill(f"{label:<{_LABEL_WIDTH}}{value}", _WIDTH, subsequent_indent=" " * _LABEL_WIDTH)
        for label, value in settings.items()
        if value
    ]
    return "\n".join(lines)


def _empty_images(cfg: CfgNode, train: Counts | None) -> str:
    if not train or not train.empty:
        return ""
    handling = "left out" if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS else "kept"
    return f"; {train.empty} of {train.images} images have no objects and are {handling}"


def _test_set(cfg: CfgNode, test: Counts) -> str:
    if not cfg.DATASETS.TEST:
        return "none: nothing is evaluated"
    when = f"every {cfg.TEST.EVAL_PERIOD} iterations and " if cfg.TEST.EVAL_PERIOD > 0 else ""
    limit = cfg.TEST.DETECTIONS_PER_IMAGE
    many = f"; up to {test.most} objects per image, of which {limit} can be found" if test.most > limit else ""
    return f"{', '.join(cfg.DATASETS.TEST)}, {test.images} images{many}; evaluated {when}at the end"


def _batch(cfg: CfgNode) -> str:
    images, processes, parts = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size(), cfg.TRAIN.ACCUMULATE
    each = images // processes
    at_a_time = f", {each // parts} at a time" if parts > 1 else ""
    if processes > 1:
        return f"{images} images per iteration: {each} on each of {processes} processes{at_a_time}"
    return f"{images} images per iteration{at_a_time}, on one process"


def _length(cfg: CfgNode, train: Counts | None, start_iter: int) -> str:
    solver = cfg.SOLVER
    used = train and train.images - (train.empty if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS else 0)
    epochs = f" = {solver.MAX_ITER * solver.IMS_PER_BATCH / used:.1f} epochs of {used} images" if used else ""
    resumed = f"; resumes from iteration {start_iter}" if start_iter else ""
    return f"{solver.MAX_ITER} iterations{epochs}{resumed}"


def _learning_rate(original_cfg: CfgNode, cfg: CfgNode) -> str:
    reference, processes = original_cfg.SOLVER.REFERENCE_WORLD_SIZE, comm.get_world_size()
    if reference in (0, processes):
        why = f"the config was written for {reference} processes" if reference else "SOLVER.REFERENCE_WORLD_SIZE is 0"
        return f"{cfg.SOLVER.BASE_LR:g} as given, not scaled: {why}"
    return (
        f"{original_cfg.SOLVER.BASE_LR:g} -> {cfg.SOLVER.BASE_LR:g}: scaled by the linear rule from "
        f"SOLVER.REFERENCE_WORLD_SIZE {reference} to {processes} processes, with {reference / processes:g}x the iterations"
    )


def _schedule(cfg: CfgNode) -> str:
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


def _options(cfg: CfgNode) -> str:
    train, how = cfg.TRAIN, training_precision(cfg)
    options = {
        f"weights averaged with decay {train.EMA.DECAY:g}": train.EMA.ENABLED,
        f"best weights by {train.METRIC} saved": train.BEST,
        f"early stop by {train.METRIC} with patience {train.EARLY_STOP.PATIENCE}": train.EARLY_STOP.PATIENCE,
        "Weights & Biases": train.WANDB.ENABLED,
        f"mixed precision in {str(how.dtype).removeprefix('torch.')}": how.dtype is not None,
        "ResNet activations recomputed": train.CHECKPOINT_ACTIVATIONS,
        "channels_last": how.channels_last,
        "GN as Triton kernels": how.implementation == "triton",
        "compiled backbone": train.COMPILE,
    }
    return "; ".join(text for text, enabled in options.items() if enabled)


def _speed(cfg: CfgNode) -> str:
    """Return what may make training on a GPU faster."""
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        return ""
    if training_precision(cfg).dtype is not None:
        return ""
    return "float32; GPU.MIXED_PRECISION True trains in half precision, with less memory (not measured yet)"


def _part_table(model: nn.Module) -> str:
    """Return a table of the parameters (in millions) and norms of each part of the model."""
    trained, frozen, norms = Counter[str](), Counter[str](), dict[str, list[nn.Module]]()
    for name, parameter in model.named_parameters():
        (trained if parameter.requires_grad else frozen)[_part(name)] += parameter.numel()
    for name, module in model.named_modules():
        if is_norm(module):
            norms.setdefault(_part(name), []).append(module)
    order = [part for _, part, _ in PARTS]
    parts = sorted({*trained, *frozen}, key=lambda part: order.index(part) if part in order else len(order))
    rows = [[part, trained[part] / 1e6, frozen[part] / 1e6, describe_norms(norms.get(part, []))] for part in parts]
    rows.append(["all", trained.total() / 1e6, frozen.total() / 1e6, ""])
    return tabulate(rows, ["part", "trained (M)", "frozen (M)", "norms"], tablefmt="simple", floatfmt=".2f")


def _part(name: str) -> str:
    """Return the part of a parameter or module; a head includes its predictor."""
    return part_of(name).replace("predictor", "head")


def describe_norms(norms: Sequence[nn.Module]) -> str:
    """Return the kinds of norms with their numbers of layers, e.g. ``69 GN of 32 groups``.

    The names are those of the paper: frozen BN is BN*.
    """
    kinds = Counter("BN*" if norm_name(norm) == "FrozenBN" else norm_name(norm) for norm in norms)
    groups = sorted({norm.num_groups for norm in norms if isinstance(norm, nn.GroupNorm) and norm_name(norm) == "GN"})
    of_groups = f" of {' or '.join(map(str, groups))} group{'s' * (groups != [1])}"
    return ", ".join(f"{number} {kind}{of_groups if kind == 'GN' else ''}" for kind, number in kinds.items()) or "none"
