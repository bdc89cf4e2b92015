"""The switches of training, the config's section ``TRAIN``, and refusal of what they cannot do."""

import importlib.util
import math

from detectron2.config import CfgNode
from detectron2.utils import comm

from .errors import GNDetError, did_you_mean
from .metrics import metric_names
from .norm import PER_SAMPLE


def add_switches(cfg: CfgNode) -> None:
    """Add the section ``TRAIN``. It is not under ``MODEL.GN``, as no model is built differently by it."""
    cfg.TRAIN = CfgNode()
    # What BEST and EARLY_STOP go by, on the first of DATASETS.TEST: bbox/ or segm/ and AP, AP50, ..., AR100, AP-CLASS.
    cfg.TRAIN.METRIC = "bbox/AP"
    # Keep the weights of the best evaluation as model_best.pth.
    cfg.TRAIN.BEST = False
    # Stop after PATIENCE evaluations in a row that were not better than the best by more than MIN_DELTA percent. 0: never.
    cfg.TRAIN.EARLY_STOP = CfgNode()
    cfg.TRAIN.EARLY_STOP.PATIENCE = 0
    cfg.TRAIN.EARLY_STOP.MIN_DELTA = 0.0
    # Evaluate and save the exponential moving average of the weights. Its decay rises to DECAY: (1 + t) / (10 + t) at
    # iteration t, so that the start is forgotten in short trainings too.
    cfg.TRAIN.EMA = CfgNode()
    cfg.TRAIN.EMA.ENABLED = False
    cfg.TRAIN.EMA.DECAY = 0.999
    # What SOLVER.AMP.ENABLED computes in, on a GPU or a CPU: bfloat16; or float16, on GPUs only.
    cfg.TRAIN.AMP_DTYPE = "bfloat16"
    # Take the images of an iteration through the model in so many parts, in the memory of one. The step stays one.
    cfg.TRAIN.ACCUMULATE = 1
    # Keep only the input of each block of the ResNet, and compute the rest again for the gradients.
    cfg.TRAIN.CHECKPOINT_ACTIVATIONS = False
    # Keep weights and images channels last in memory.
    cfg.TRAIN.CHANNELS_LAST = False
    # torch.compile the backbone.
    cfg.TRAIN.COMPILE = False
    # How many predictions each evaluation shows beside the truth in TensorBoard and Weights & Biases.
    cfg.TRAIN.PICTURES = 3
    # Weights & Biases too. NAME "" is that of OUTPUT_DIR; all else is said by its own WANDB_* variables.
    cfg.TRAIN.WANDB = CfgNode()
    cfg.TRAIN.WANDB.ENABLED = False
    cfg.TRAIN.WANDB.PROJECT = "gn_det"
    cfg.TRAIN.WANDB.NAME = ""


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
