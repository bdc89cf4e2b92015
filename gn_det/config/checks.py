"""Every refusal of a config: what detectron2 would train or evaluate wrongly without an error."""

import importlib.util
import itertools
import math

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from ..errors import GNDetError, did_you_mean
from ..metrics import metric_names
from ..modeling.norm import NORM_KEYS, PER_SAMPLE, check_norm, get_key

# Norm key, the key that names a part that reads it, and gn_det's own parts there, which follow the whole switch.
_PARTS = (
    ("MODEL.RESNETS.NORM", "MODEL.BACKBONE.NAME", ("build_gn_resnet_backbone", "build_gn_resnet_fpn_backbone")),
    ("MODEL.RESNETS.NORM", "MODEL.ROI_HEADS.NAME", ("Res5GNROIHeads",)),
    ("MODEL.FPN.NORM", "MODEL.BACKBONE.NAME", ("build_gn_resnet_fpn_backbone",)),
    ("MODEL.ROI_BOX_HEAD.NORM", "MODEL.ROI_BOX_HEAD.NAME", ("FastRCNN4Conv1FCGNHead",)),
    ("MODEL.ROI_MASK_HEAD.NORM", "MODEL.ROI_MASK_HEAD.NAME", ("MaskRCNNConvUpsampleGNHead",)),
)
# How weights may differ from the model that is to hold them (gn_det.checkpoint.fit).
ACCEPT = ("norm", "recipe", "classes", "partial")
_DEPTHS = (18, 34, 50, 101, 152)
DTYPES = ("float32", "bfloat16")


def check_config(cfg: CfgNode, *, has_checkpoint: bool = False, eval_only: bool = False) -> None:
    """Refuse what detectron2 would train or evaluate wrongly without a word.

    Args:
        has_checkpoint: all weights come from a checkpoint of this very model (``--resume``), so that an empty
            ``MODEL.WEIGHTS`` does not mean random ones.
        eval_only: nothing is trained, so only ``DATASETS.TEST`` matters.

    Raises:
        GNDetError: the first thing found, in one sentence.
    """
    for key in NORM_KEYS:
        check_norm(cfg, key)
    for part in _PARTS:
        _check_part(cfg, *part)
    _check_resnet(cfg)
    _check_accepted(cfg)
    check_inference(cfg)
    if cfg.MODEL.LOAD_PROPOSALS:
        raise GNDetError(
            "MODEL.LOAD_PROPOSALS is True, but files of proposals are pickles, which can run code: set it to False."
        )
    if not cfg.MODEL.WEIGHTS and not has_checkpoint:
        _check_scratch(cfg)
    if not eval_only:
        _check_solver(cfg)
    for name in datasets_of_run(cfg, eval_only):
        _check_classes(cfg, name)
    if not eval_only:
        check_switches(cfg)


def datasets_of_run(cfg: CfgNode, eval_only: bool) -> tuple[str, ...]:
    """The names of the data sets that a run reads."""
    return (*(() if eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST)


def _check_part(cfg: CfgNode, key: str, name_key: str, ours: tuple[str, ...]) -> None:
    """detectron2's own parts know GN only with 32 groups and eps 1e-5, another LN, no IN, and no weight standardisation."""
    norm, name = get_key(cfg, key), get_key(cfg, name_key)
    if (key == "MODEL.FPN.NORM" and "fpn" not in name) or (
        name_key == "MODEL.ROI_HEADS.NAME" and name != "Res5ROIHeads"
    ):
        return  # nobody reads the key for this part
    if name in ours:
        return
    if norm and cfg.MODEL.GN.WEIGHT_STANDARDIZATION:
        raise GNDetError(
            f"MODEL.GN.WEIGHT_STANDARDIZATION is True, but {name_key} {name!r} would take no notice of it: set {name_key} "
            f"to {ours[-1]}."
        )
    default = cfg.MODEL.GN.NUM_GROUPS == 32 and cfg.MODEL.GN.CHANNELS_PER_GROUP == -1 and cfg.MODEL.GN.EPS == 1e-5
    if norm not in PER_SAMPLE or (norm == "GN" and default):
        return
    what = f"{norm} with MODEL.GN changed" if norm == "GN" else norm
    raise GNDetError(
        f"{key} is {what}, which {name_key} {name!r} does not have in the paper's meaning: set {name_key} to {ours[-1]}."
    )


def _check_resnet(cfg: CfgNode) -> None:
    resnets = cfg.MODEL.RESNETS
    if "resnet" not in cfg.MODEL.BACKBONE.NAME:
        return
    if resnets.DEPTH not in _DEPTHS:
        raise GNDetError(f"MODEL.RESNETS.DEPTH is {resnets.DEPTH}; there is {', '.join(map(str, _DEPTHS))}.")
    if resnets.DEPTH < 50 and resnets.RES2_OUT_CHANNELS != 64:
        raise GNDetError(
            f"MODEL.RESNETS.RES2_OUT_CHANNELS is {resnets.RES2_OUT_CHANNELS}, and must be 64 for DEPTH {resnets.DEPTH}."
        )
    if cfg.MODEL.GN.WEIGHT_STANDARDIZATION and any(resnets.DEFORM_ON_PER_STAGE):
        raise GNDetError(
            "MODEL.GN.WEIGHT_STANDARDIZATION is True, but the deformable convolutions of MODEL.RESNETS.DEFORM_ON_PER_STAGE "
            "are not standardised: set one of the two to False."
        )
    ours = cfg.MODEL.BACKBONE.NAME.startswith("build_gn_")
    if ours and resnets.STRIDE_IN_1X1 and resnets.DEPTH >= 50:
        raise GNDetError(
            f"MODEL.RESNETS.STRIDE_IN_1X1 is True, but {cfg.MODEL.BACKBONE.NAME} has the stride on the 3x3, as all "
            "published GN weights have: set it to False."
        )


def _check_accepted(cfg: CfgNode) -> None:
    accepted = cfg.MODEL.GN.ACCEPT_WEIGHTS
    if unknown := [
        word for word in (accepted if isinstance(accepted, tuple | list) else [accepted]) if word not in ACCEPT
    ]:
        raise GNDetError(
            f"MODEL.GN.ACCEPT_WEIGHTS is {accepted!r}, but {unknown[0]!r} is none of {', '.join(map(repr, ACCEPT))}: write "
            "for example \"('classes',)\"."
        )


def check_inference(cfg: CfgNode) -> None:
    """Raise GNDetError, in one sentence, for a key of ``INFERENCE`` that cannot be followed."""
    if cfg.INFERENCE.DTYPE not in DTYPES:
        raise GNDetError(f"INFERENCE.DTYPE is {cfg.INFERENCE.DTYPE!r}; it is one of {', '.join(DTYPES)}.")


def _check_scratch(cfg: CfgNode) -> None:
    if cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        raise GNDetError(
            f"MODEL.WEIGHTS is empty and MODEL.BACKBONE.FREEZE_AT is {cfg.MODEL.BACKBONE.FREEZE_AT}: the first layers "
            "would stay random for ever (this cost Detectron's first from-scratch numbers 3.3 box AP); set FREEZE_AT to 0 "
            "to train from scratch, or name weights."
        )
    frozen = [key for key in NORM_KEYS if get_key(cfg, key) == "FrozenBN"]
    if frozen and not cfg.MODEL.GN.FROZENBN_FROM_SCRATCH:
        raise GNDetError(
            f"{frozen[0]} is FrozenBN and MODEL.WEIGHTS is empty: BN* keeps the statistics of pre-trained weights, and "
            "without them normalises nothing; name weights, or take GN, or, if that is what is to be shown, set "
            "MODEL.GN.FROZENBN_FROM_SCRATCH True."
        )


def _check_solver(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    for name in ("BASE_LR", "IMS_PER_BATCH", "MAX_ITER", "CHECKPOINT_PERIOD"):
        if solver[name] is None or solver[name] <= 0:
            raise GNDetError(f"SOLVER.{name} is {solver[name]}, and must be above 0.")
    steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]  # detectron2 leaves out the others
    rises = all(before < after for before, after in itertools.pairwise([0, *steps, solver.MAX_ITER]))
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and not rises:
        raise GNDetError(
            f"SOLVER.STEPS is {solver.STEPS}: the iterations must rise, from above 0 to below SOLVER.MAX_ITER "
            f"{solver.MAX_ITER}."
        )
    if (world := solver.REFERENCE_WORLD_SIZE) and (world < 0 or solver.IMS_PER_BATCH % world):
        raise GNDetError(
            f"SOLVER.REFERENCE_WORLD_SIZE is {world}, which does not divide SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH}: "
            "take the number of processes that the config was made for, or 0 for no scaling."
        )
    if not cfg.DATASETS.TRAIN:
        raise GNDetError("DATASETS.TRAIN is empty: name a data set, or give --train-json and --train-images.")


def _check_classes(cfg: CfgNode, name: str) -> None:
    if name not in DatasetCatalog:
        known = did_you_mean(name, DatasetCatalog.list())
        raise GNDetError(f"There is no data set {name!r}{known}; your own goes in by --train-json and --train-images.")
    classes = MetadataCatalog.get(name).get("thing_classes")
    if classes is not None and len(classes) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise GNDetError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, but the data set {name} has "
            f"{len(classes)} classes: set it to {len(classes)}."
        )


def check_switches(cfg: CfgNode) -> None:
    """Raise GNDetError, in one sentence, for the first switch that is out of range or lacks what it needs."""
    train = cfg.TRAIN
    for name, value in (("EARLY_STOP.PATIENCE", train.EARLY_STOP.PATIENCE), ("PICTURES", train.PICTURES)):
        if value is None or value < 0:
            raise GNDetError(f"TRAIN.{name} is {value}, and must be a number from 0 on; 0 turns it off.")
    delta = train.EARLY_STOP.MIN_DELTA
    if delta is None or not 0 <= delta < math.inf:
        raise GNDetError(f"TRAIN.EARLY_STOP.MIN_DELTA is {delta}, and must be a number of percent from 0 on.")
    if train.BEST:
        _check_evaluation(cfg, "TRAIN.BEST is True")
    if train.EARLY_STOP.PATIENCE:
        _check_evaluation(cfg, f"TRAIN.EARLY_STOP.PATIENCE is {train.EARLY_STOP.PATIENCE}")
    if train.EMA.ENABLED:
        _check_ema(cfg)
    if cfg.SOLVER.AMP.ENABLED:
        _check_precision(cfg)
    check_accumulation(cfg, comm.get_world_size())
    if train.CHECKPOINT_ACTIVATIONS and cfg.MODEL.RESNETS.NORM not in (*PER_SAMPLE, "FrozenBN", ""):
        raise GNDetError(
            f"TRAIN.CHECKPOINT_ACTIVATIONS is True, but MODEL.RESNETS.NORM is {cfg.MODEL.RESNETS.NORM}, whose running "
            "statistics would count each batch twice: set it to False, or take GN."
        )
    if train.WANDB.ENABLED and importlib.util.find_spec("wandb") is None:
        raise GNDetError(
            "TRAIN.WANDB.ENABLED is True, but wandb is not installed: pip install wandb, or set it to False."
        )


def _check_evaluation(cfg: CfgNode, switch: str) -> None:
    if not cfg.DATASETS.TEST:
        raise GNDetError(f"{switch}, but nothing is evaluated: give --val-json and --val-images, or DATASETS.TEST.")
    if cfg.TEST.EVAL_PERIOD <= 0:
        raise GNDetError(
            f"{switch}, but TEST.EVAL_PERIOD is {cfg.TEST.EVAL_PERIOD}, so that only the end is evaluated: set it to a "
            "number of iterations."
        )
    known = metric_names(cfg)
    if cfg.TRAIN.METRIC not in known:
        hint = did_you_mean(cfg.TRAIN.METRIC, known)
        raise GNDetError(f"TRAIN.METRIC is {cfg.TRAIN.METRIC!r}, which no evaluation here gives{hint}.")


def _check_ema(cfg: CfgNode) -> None:
    decay = cfg.TRAIN.EMA.DECAY
    if decay is None or not 0 < decay < 1:
        raise GNDetError(f"TRAIN.EMA.DECAY is {decay}, and must lie between 0 and 1, as 0.999 does.")
    if cfg.TEST.PRECISE_BN.ENABLED:
        raise GNDetError(
            "TRAIN.EMA.ENABLED and TEST.PRECISE_BN.ENABLED are both True, but precise BN measures the statistics of the "
            "weights before averaging: set one of them to False."
        )


def _check_precision(cfg: CfgNode) -> None:
    dtype = cfg.TRAIN.AMP_DTYPE
    if dtype not in ("bfloat16", "float16"):
        raise GNDetError(f"TRAIN.AMP_DTYPE is {dtype!r}; it is bfloat16, or on a GPU float16.")
    if dtype == "float16" and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise GNDetError(
            "TRAIN.AMP_DTYPE is float16, which trains on GPUs only, and there is none: set it to bfloat16."
        )


def check_accumulation(cfg: CfgNode, processes: int) -> None:
    """Raise GNDetError where the images that one of so many processes has in an iteration make no equal parts."""
    parts, batch = cfg.TRAIN.ACCUMULATE, cfg.SOLVER.IMS_PER_BATCH
    images = batch // (cfg.SOLVER.REFERENCE_WORLD_SIZE or processes)  # scaling keeps the images of a process
    if parts is None or parts < 1 or images % parts:
        possible = ", ".join(str(number) for number in range(1, images + 1) if images % number == 0)
        raise GNDetError(
            f"TRAIN.ACCUMULATE is {parts}, which does not divide the {images} images that a process has of "
            f"SOLVER.IMS_PER_BATCH {batch}: take one of {possible}."
        )
