"""Checks that refuse configs with which detectron2 would train or evaluate wrongly without an error."""

import importlib.util
import itertools
import math

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from ..errors import GNDetError, did_you_mean
from ..metrics import metric_names
from ..modeling.norm import NORM_KEYS, PER_SAMPLE, check_norm, get_key
from .consistency import check_consistency
from .finite import check_finite
from .graph_checks import check_cuda_graphs
from .values import check_values

# (norm key, key that names the part that reads the norm key, names of gn_det's versions of that part).
# Only gn_det's versions support all values of the norm key.
_PARTS = (
    ("MODEL.RESNETS.NORM", "MODEL.BACKBONE.NAME", ("build_gn_resnet_backbone", "build_gn_resnet_fpn_backbone")),
    ("MODEL.RESNETS.NORM", "MODEL.ROI_HEADS.NAME", ("Res5GNROIHeads",)),
    ("MODEL.FPN.NORM", "MODEL.BACKBONE.NAME", ("build_gn_resnet_fpn_backbone",)),
    ("MODEL.ROI_BOX_HEAD.NORM", "MODEL.ROI_BOX_HEAD.NAME", ("FastRCNN4Conv1FCGNHead",)),
    ("MODEL.ROI_MASK_HEAD.NORM", "MODEL.ROI_MASK_HEAD.NAME", ("MaskRCNNConvUpsampleGNHead",)),
)
_DEPTHS = (18, 34, 50, 101, 152)
_ACCEPT_WEIGHTS = ("norm", "recipe", "classes", "partial")  # explained in gn_det.checkpoint.fit
_INFERENCE_DTYPES = ("float32", "bfloat16")


def check_config(cfg: CfgNode, *, has_checkpoint: bool = False, eval_only: bool = False) -> None:
    """Refuse a config with which detectron2 would train or evaluate wrongly without an error.

    Args:
        cfg: config with gn_det's keys.
        has_checkpoint: whether all weights come from a checkpoint of this very model (``--resume``),
            so that an empty ``MODEL.WEIGHTS`` does not mean random initialization.
        eval_only: whether the config is only used for evaluation, so that the training data and
            the keys of the training are not checked.

    Raises:
        GNDetError: for the first mistake found, in one sentence.
    """
    check_finite(cfg)
    for key in NORM_KEYS:
        check_norm(cfg, key)
    for part in _PARTS:
        _check_part(cfg, *part)
    _check_resnet(cfg)
    _check_accept_weights(cfg)
    check_inference(cfg)
    _check_padding(cfg)
    if cfg.MODEL.LOAD_PROPOSALS:
        raise GNDetError(
            "MODEL.LOAD_PROPOSALS is True, but proposal files are pickles, which can run code: set it to False."
        )
    check_values(cfg, training=not eval_only)
    check_consistency(cfg, training=not eval_only)
    if not cfg.MODEL.WEIGHTS and not has_checkpoint:
        _check_scratch(cfg)
    if not eval_only:
        _check_solver(cfg)
    for name in datasets_of_run(cfg, eval_only):
        _check_classes(cfg, name)
    if not eval_only:
        check_training_options(cfg)


def datasets_of_run(cfg: CfgNode, eval_only: bool) -> tuple[str, ...]:
    """Return the names of all datasets that a run reads."""
    return (*(() if eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST)


# ---- model


def _check_part(cfg: CfgNode, key: str, name_key: str, gn_det_names: tuple[str, ...]) -> None:
    """Check that the part named by ``name_key`` supports the norm of ``key`` and the keys of ``MODEL.GN``.

    detectron2's own parts support GN only with 32 groups and eps 1e-5, have another LN, and support
    neither IN nor weight standardization.
    """
    norm, name = get_key(cfg, key), get_key(cfg, name_key)
    if (key == "MODEL.FPN.NORM" and "fpn" not in name) or (
        name_key == "MODEL.ROI_HEADS.NAME" and name != "Res5ROIHeads"
    ):
        return  # this part does not read the key
    if name in gn_det_names:
        return
    if norm and cfg.MODEL.GN.WEIGHT_STANDARDIZATION:
        raise GNDetError(
            f"MODEL.GN.WEIGHT_STANDARDIZATION is True, but {name_key} {name!r} ignores it: set {name_key} to "
            f"{gn_det_names[-1]}."
        )
    default = cfg.MODEL.GN.NUM_GROUPS == 32 and cfg.MODEL.GN.CHANNELS_PER_GROUP == -1 and cfg.MODEL.GN.EPS == 1e-5
    if norm not in PER_SAMPLE or (norm == "GN" and default):
        return
    described = "GN with changed MODEL.GN keys" if norm == "GN" else norm
    raise GNDetError(
        f"{key} is {described}, which {name_key} {name!r} does not implement as the paper defines it: set {name_key} to "
        f"{gn_det_names[-1]}."
    )


def _check_resnet(cfg: CfgNode) -> None:
    resnets = cfg.MODEL.RESNETS
    if "resnet" not in cfg.MODEL.BACKBONE.NAME:
        return
    if resnets.DEPTH not in _DEPTHS:
        raise GNDetError(f"MODEL.RESNETS.DEPTH is {resnets.DEPTH}; it must be one of {', '.join(map(str, _DEPTHS))}.")
    if resnets.DEPTH < 50 and resnets.RES2_OUT_CHANNELS != 64:
        raise GNDetError(
            f"MODEL.RESNETS.RES2_OUT_CHANNELS is {resnets.RES2_OUT_CHANNELS}; it must be 64 for DEPTH {resnets.DEPTH}."
        )
    if cfg.MODEL.GN.WEIGHT_STANDARDIZATION and any(resnets.DEFORM_ON_PER_STAGE):
        raise GNDetError(
            "MODEL.GN.WEIGHT_STANDARDIZATION is True, but the deformable convolutions of MODEL.RESNETS.DEFORM_ON_PER_STAGE "
            "are not standardized: turn off one of the two."
        )
    is_gn_det = cfg.MODEL.BACKBONE.NAME.startswith("build_gn_")
    if is_gn_det and resnets.STRIDE_IN_1X1 and resnets.DEPTH >= 50:
        raise GNDetError(
            f"MODEL.RESNETS.STRIDE_IN_1X1 is True, but {cfg.MODEL.BACKBONE.NAME} has the stride on the 3x3 convolution, "
            "like all published GN weights: set it to False."
        )


def _check_accept_weights(cfg: CfgNode) -> None:
    accepted = cfg.MODEL.GN.ACCEPT_WEIGHTS
    words = accepted if isinstance(accepted, tuple | list) else [accepted]
    if unknown := [word for word in words if word not in _ACCEPT_WEIGHTS]:
        raise GNDetError(
            f"MODEL.GN.ACCEPT_WEIGHTS is {accepted!r}, but {unknown[0]!r} is not one of "
            f"{', '.join(map(repr, _ACCEPT_WEIGHTS))}: write for example \"('classes',)\"."
        )


def check_inference(cfg: CfgNode) -> None:
    """Raise GNDetError for an invalid key of the section ``INFERENCE``."""
    if cfg.INFERENCE.DTYPE not in _INFERENCE_DTYPES:
        raise GNDetError(
            f"INFERENCE.DTYPE is {cfg.INFERENCE.DTYPE!r}; it must be one of {', '.join(_INFERENCE_DTYPES)}."
        )
    if cfg.INFERENCE.BATCH_SIZE is None or cfg.INFERENCE.BATCH_SIZE < 1:
        raise GNDetError(f"INFERENCE.BATCH_SIZE is {cfg.INFERENCE.BATCH_SIZE}; it must be 1 or more images.")


def _check_padding(cfg: CfgNode) -> None:
    """Check that ``MODEL.GN.IGNORE_PADDING`` can be followed."""
    if cfg.MODEL.GN.IGNORE_PADDING and cfg.TRAIN.COMPILE:
        raise GNDetError(
            "TRAIN.COMPILE is True, but a compiled backbone cannot ignore the padding: set MODEL.GN.IGNORE_PADDING to False."
        )


def _check_scratch(cfg: CfgNode) -> None:
    """Check a config that starts from random weights."""
    if cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        raise GNDetError(
            f"MODEL.WEIGHTS is empty and MODEL.BACKBONE.FREEZE_AT is {cfg.MODEL.BACKBONE.FREEZE_AT}: the first layers "
            "would stay random during the whole training (this cost Detectron's first from-scratch numbers 3.3 box AP); "
            "set FREEZE_AT to 0 to train from scratch, or set MODEL.WEIGHTS."
        )
    frozen = [key for key in NORM_KEYS if get_key(cfg, key) == "FrozenBN"]
    if frozen and not cfg.MODEL.GN.FROZENBN_FROM_SCRATCH:
        raise GNDetError(
            f"{frozen[0]} is FrozenBN and MODEL.WEIGHTS is empty: FrozenBN (BN*) only applies the statistics of pre-trained "
            "weights, and normalizes nothing without them; set MODEL.WEIGHTS, use GN, or, to train with it anyway, set "
            "MODEL.GN.FROZENBN_FROM_SCRATCH to True."
        )


# ---- solver and data


def _check_solver(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    for name in ("BASE_LR", "IMS_PER_BATCH", "MAX_ITER", "CHECKPOINT_PERIOD"):
        if solver[name] is None or solver[name] <= 0:
            raise GNDetError(f"SOLVER.{name} is {solver[name]}; it must be above 0.")
    steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]  # detectron2 ignores later steps
    increasing = all(before < after for before, after in itertools.pairwise([0, *steps, solver.MAX_ITER]))
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and not increasing:
        raise GNDetError(
            f"SOLVER.STEPS is {solver.STEPS}; the iterations must increase, and be above 0 and below SOLVER.MAX_ITER "
            f"{solver.MAX_ITER}."
        )
    if (world := solver.REFERENCE_WORLD_SIZE) and (world < 0 or solver.IMS_PER_BATCH % world):
        raise GNDetError(
            f"SOLVER.REFERENCE_WORLD_SIZE is {world}, which does not divide SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH}: "
            "use the number of processes that the config was written for, or 0 to turn off scaling."
        )
    if not cfg.DATASETS.TRAIN:
        raise GNDetError("DATASETS.TRAIN is empty: name a dataset, or pass --train-json and --train-images.")


def _check_classes(cfg: CfgNode, name: str) -> None:
    """Check that a dataset is registered, is of COCO's kind and has ``MODEL.ROI_HEADS.NUM_CLASSES`` classes."""
    if name not in DatasetCatalog:
        hint = did_you_mean(name, DatasetCatalog.list())
        raise GNDetError(
            f"There is no dataset {name!r}{hint}; to use your own data, pass --train-json and --train-images."
        )
    kind = MetadataCatalog.get(name).get("evaluator_type", "coco")
    if kind != "coco":
        raise GNDetError(
            f"The dataset {name} has the metrics of {kind}, and gn_det computes only COCO's AP of boxes and masks: "
            "convert its annotations to COCO format, and pass them with --train-json and --val-json."
        )
    classes = MetadataCatalog.get(name).get("thing_classes")
    if classes is not None and len(classes) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise GNDetError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, but the dataset {name} has "
            f"{len(classes)} classes: set it to {len(classes)}."
        )


# ---- training options


def check_training_options(cfg: CfgNode) -> None:
    """Raise GNDetError for the first training option that is out of range or lacks something it needs.

    Checks the section ``TRAIN``, and ``SOLVER.AMP``.
    """
    train = cfg.TRAIN
    for name in ("KEEP_CHECKPOINTS", "EARLY_STOP.PATIENCE", "PICTURES", "SKIP_NONFINITE", "STALL_MINUTES"):
        value = get_key(cfg, f"TRAIN.{name}")
        if value is None or value < 0:
            raise GNDetError(f"TRAIN.{name} is {value}; it must be 0 (off) or more.")
    delta = train.EARLY_STOP.MIN_DELTA
    if delta is None or not 0 <= delta < math.inf:
        raise GNDetError(f"TRAIN.EARLY_STOP.MIN_DELTA is {delta}; it must be 0 or more percentage points, and finite.")
    if train.BEST:
        _check_evaluation(cfg, "TRAIN.BEST is True")
    if train.EARLY_STOP.PATIENCE:
        _check_evaluation(cfg, f"TRAIN.EARLY_STOP.PATIENCE is {train.EARLY_STOP.PATIENCE}")
    if train.EMA.ENABLED:
        _check_ema(cfg)
    if cfg.SOLVER.AMP.ENABLED:
        _check_amp(cfg)
    check_accumulation(cfg, comm.get_world_size())
    check_cuda_graphs(cfg, comm.get_world_size())
    if train.CHECKPOINT_ACTIVATIONS and cfg.MODEL.RESNETS.NORM not in (*PER_SAMPLE, "FrozenBN", ""):
        raise GNDetError(
            f"TRAIN.CHECKPOINT_ACTIVATIONS is True, but MODEL.RESNETS.NORM is {cfg.MODEL.RESNETS.NORM}, whose running "
            "statistics would count each batch twice: set TRAIN.CHECKPOINT_ACTIVATIONS to False, or use GN."
        )
    if train.WANDB.ENABLED and importlib.util.find_spec("wandb") is None:
        raise GNDetError(
            "TRAIN.WANDB.ENABLED is True, but wandb is not installed: pip install wandb, or set TRAIN.WANDB.ENABLED to "
            "False."
        )


def _check_evaluation(cfg: CfgNode, option: str) -> None:
    """Check that the run evaluates ``TRAIN.METRIC``, which ``option`` needs, during training."""
    if not cfg.DATASETS.TEST:
        raise GNDetError(
            f"{option}, but the run has no test set: pass --val-json and --val-images, or set DATASETS.TEST."
        )
    if cfg.TEST.EVAL_PERIOD <= 0:
        raise GNDetError(
            f"{option}, but TEST.EVAL_PERIOD is {cfg.TEST.EVAL_PERIOD}, so the model is evaluated only at the end: set "
            "TEST.EVAL_PERIOD to a number of iterations."
        )
    known = metric_names(cfg)
    if cfg.TRAIN.METRIC not in known:
        hint = did_you_mean(cfg.TRAIN.METRIC, known)
        raise GNDetError(f"TRAIN.METRIC is {cfg.TRAIN.METRIC!r}, which the evaluations do not measure{hint}.")


def _check_ema(cfg: CfgNode) -> None:
    decay = cfg.TRAIN.EMA.DECAY
    if decay is None or not 0 < decay < 1:
        raise GNDetError(f"TRAIN.EMA.DECAY is {decay}; it must be between 0 and 1, for example 0.999.")
    if cfg.TEST.PRECISE_BN.ENABLED:
        raise GNDetError(
            "TRAIN.EMA.ENABLED and TEST.PRECISE_BN.ENABLED are both True, but precise BN measures the statistics of the "
            "weights before averaging: set one of them to False."
        )


def _check_amp(cfg: CfgNode) -> None:
    dtype = cfg.TRAIN.AMP_DTYPE
    if dtype not in ("bfloat16", "float16"):
        raise GNDetError(f"TRAIN.AMP_DTYPE is {dtype!r}; it must be bfloat16 or, on a GPU, float16.")
    if dtype == "float16" and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise GNDetError(
            f"TRAIN.AMP_DTYPE is float16, which needs a GPU, but MODEL.DEVICE is {cfg.MODEL.DEVICE}: set TRAIN.AMP_DTYPE to "
            "bfloat16."
        )


def check_accumulation(cfg: CfgNode, processes: int) -> None:
    """Raise GNDetError if ``TRAIN.ACCUMULATE`` does not divide the images of one process.

    Args:
        processes: number of processes of the run.
    """
    parts, batch = cfg.TRAIN.ACCUMULATE, cfg.SOLVER.IMS_PER_BATCH
    # Scaling by REFERENCE_WORLD_SIZE changes the batch, but not the number of images per process.
    images = batch // (cfg.SOLVER.REFERENCE_WORLD_SIZE or processes)
    if parts is None or parts < 1 or images % parts:
        possible = ", ".join(str(number) for number in range(1, images + 1) if images % number == 0)
        raise GNDetError(
            f"TRAIN.ACCUMULATE is {parts}, which does not divide the {images} images per process of SOLVER.IMS_PER_BATCH "
            f"{batch}: use one of {possible}."
        )
