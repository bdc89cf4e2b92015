"""All config keys that gn_det adds to detectron2's config, with their defaults and descriptions."""

from dataclasses import dataclass
from typing import Any, Literal

from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_get_cfg


@dataclass(frozen=True)
class Key:
    """A config key that gn_det adds, with its default and description.

    Attributes:
        name: dotted name, e.g. "MODEL.GN.NUM_GROUPS".
        default: default value.
        text: description, in Markdown, for the documentation page of all keys.
        recipe: whether the value is part of the recipe of a run. Runs with the same recipe count as
            repetitions of one experiment. "always": yes. "if changed": only if it differs from the
            default. "never": no, because the key changes where or how a run is computed, but not
            what is computed.
    """

    name: str
    default: Any
    text: str
    recipe: Literal["always", "if changed", "never"] = "if changed"


KEYS = (
    Key(
        "MODEL.GN.NUM_GROUPS",
        32,
        "Number of groups G of each GN layer (Eq. 7 of the paper). Set it to -1 to use `CHANNELS_PER_GROUP`.",
        "always",
    ),
    Key(
        "MODEL.GN.CHANNELS_PER_GROUP",
        -1,
        "Number of channels per group, C/G (second panel of Table 3), instead of `NUM_GROUPS`. -1: not used.",
        "always",
    ),
    Key(
        "MODEL.GN.EPS",
        1e-5,
        "Constant that GN, LN and IN add to the variance before the square root (Eq. 2).",
        "always",
    ),
    Key(
        "MODEL.GN.ZERO_INIT_RESIDUAL",
        False,
        "Initialize the scale of the last norm of each residual block to 0, as the paper does on ImageNet (Section 4.1). "
        "Detectron's COCO models trained from scratch do not do this.",
        "always",
    ),
    Key(
        "MODEL.GN.WEIGHT_STANDARDIZATION",
        False,
        "Standardize the weights of all convolutions that have a norm (arXiv 1903.10520), as mmdetection's GN+WS models do.",
    ),
    Key(
        "MODEL.GN.FROZENBN_FROM_SCRATCH",
        False,
        "Allow `FrozenBN` without pre-trained weights. It then normalizes nothing; use this only for comparisons.",
    ),
    Key(
        "MODEL.GN.ACCEPT_WEIGHTS",
        (),
        "Differences to accept between `MODEL.WEIGHTS` and the model: `'norm'` (another kind of norm), `'recipe'` (for "
        "example another pixel mean or number of groups), `'classes'` (another number of classes), `'partial'` (tensors "
        "that are missing, left over or of another shape). With `'classes'` and `'partial'`, tensors that do not fit are "
        "initialized at random, so `--eval-only` and `--resume` ignore these two.",
    ),
    Key(
        "MODEL.GN.IGNORE_PADDING",
        True,
        "Compute for each image of a batch what the model computes for the image alone: the padding to the size of the "
        "largest image enters no statistics, features, proposals or losses. `False`: as stock detectron2. Training on a GPU "
        "also needs `GPU.TRAIN_WITHOUT_PADDING`.",
    ),
    Key(
        "MODEL.GN.FUSE",
        True,
        "Run GN, the residual sum and the ReLU as one operation (`gn_det.ops`). The outputs agree to rounding. On a GPU, "
        "this needs `GPU.MIXED_PRECISION`.",
        "never",
    ),
    Key(
        "MODEL.GN.CONFIG",
        "",
        "Name of the config file, for result records. `load_config` sets it if it is empty.",
        "always",
    ),
    Key(
        "TEST.FAST_COCO",
        True,
        "Compute COCO's metrics with hotcoco. `False`: with pycocotools, which gives the same numbers more slowly.",
        "never",
    ),
    Key(
        "TRAIN.METRIC",
        "bbox/AP",
        "Metric for `TRAIN.BEST` and `TRAIN.EARLY_STOP`, measured on the first dataset of `DATASETS.TEST`: `bbox/` or "
        "`segm/`, followed by `AP`, `AP50`, `AP75`, `APs`, `APm`, `APl`, `AR1`, `AR10`, `AR100`, `ARs`, `ARm`, `ARl` or "
        "`AP-` and the name of a class.",
    ),
    Key(
        "TRAIN.BEST",
        False,
        "Keep the weights of the evaluation with the highest `TRAIN.METRIC` in `OUTPUT_DIR/model_best.pth`. Needs "
        "`TEST.EVAL_PERIOD`.",
        "never",
    ),
    Key(
        "TRAIN.KEEP_CHECKPOINTS",
        0,
        "Keep only this number of the checkpoints that are saved every `SOLVER.CHECKPOINT_PERIOD` iterations, the newest "
        "ones. `model_final.pth` and `model_best.pth` are not counted and always kept. 0: keep all.",
        "never",
    ),
    Key(
        "TRAIN.EARLY_STOP.PATIENCE",
        0,
        "Stop training after this number of consecutive evaluations without an improvement of `TRAIN.METRIC`. Needs "
        "`TEST.EVAL_PERIOD`. 0: never.",
    ),
    Key(
        "TRAIN.EARLY_STOP.MIN_DELTA",
        0.0,
        "An evaluation is an improvement if it is better than the last improvement by more than this number of percentage "
        "points.",
    ),
    Key(
        "TRAIN.EMA.ENABLED",
        False,
        "Evaluate and save an exponential moving average (EMA) of the weights.",
    ),
    Key(
        "TRAIN.EMA.DECAY",
        0.999,
        "Decay of the EMA. At iteration t the decay is at most (1 + t) / (10 + t), so that the average soon forgets the "
        "initial weights.",
    ),
    Key(
        "TRAIN.AMP_DTYPE",
        "bfloat16",
        "Data type of mixed-precision training (`SOLVER.AMP.ENABLED`): `bfloat16`, or `float16` on GPUs only.",
    ),
    Key(
        "TRAIN.ACCUMULATE",
        1,
        "Gradient accumulation: split the images that each process has per iteration into this number of equal parts. They "
        "run one after the other, in the memory of one part, and the optimizer takes one step per iteration.",
    ),
    Key(
        "TRAIN.CHECKPOINT_ACTIVATIONS",
        False,
        "Keep only the input of each ResNet block, and recompute the rest in the backward pass: less memory, more time.",
        "never",
    ),
    Key(
        "TRAIN.CHANNELS_LAST",
        False,
        "Train with weights and images in the channels_last memory format.",
        "never",
    ),
    Key(
        "TRAIN.FEWER_SYNCS",
        False,
        "Let the host wait for the GPU less often in training: match, sample, propose and rasterize masks on the device, "
        "with fixed sizes. With the same samples, the losses agree to rounding. Not measured on a GPU yet; slower on a CPU.",
        "never",
    ),
    Key("TRAIN.COMPILE", False, "Compile the backbone with `torch.compile`.", "never"),
    Key(
        "TRAIN.CUDA_GRAPHS",
        False,
        "On a GPU, capture the forward and backward pass of the backbone and of the RPN head as CUDA graphs, one per padded "
        "size of the batch. Batches of images of different sizes run without, unless `MODEL.GN.IGNORE_PADDING` is `False`. "
        "Not measured on a GPU yet. No effect on CPUs.",
        "never",
    ),
    Key(
        "TRAIN.SKIP_NONFINITE",
        0,
        "Number of batches that a run may skip because a loss or a gradient is NaN or infinite. The next such batch ends "
        "the training.",
    ),
    Key(
        "TRAIN.STALL_MINUTES",
        30.0,
        "End the run if no process makes progress for this number of minutes, in training and in evaluation: loading, "
        "forward pass and backward pass of a batch must each take less. 0: never.",
        "never",
    ),
    Key(
        "TRAIN.PICTURES",
        3,
        "Number of test images that each evaluation draws, predictions beside ground truth, in TensorBoard and Weights & "
        "Biases. Drawing needs OpenCV. 0: none.",
        "never",
    ),
    Key("TRAIN.WANDB.ENABLED", False, "Log to Weights & Biases as well (`pip install wandb`).", "never"),
    Key(
        "TRAIN.WANDB.PROJECT",
        "gn_det",
        "Name of the Weights & Biases project. Its `WANDB_*` environment variables set everything else.",
        "never",
    ),
    Key("TRAIN.WANDB.NAME", "", "Name of the Weights & Biases run. Empty: the folder name of `OUTPUT_DIR`.", "never"),
    Key(
        "GPU.TRAIN_WITHOUT_PADDING",
        False,
        "On a GPU, follow `MODEL.GN.IGNORE_PADDING` in training too. It is off because GN, RPN and RoIAlign then run for "
        "each image of a batch of different sizes alone, which is slower than stock detectron2 there. Evaluation and "
        "prediction ignore the padding on any device. No effect on CPUs.",
    ),
    Key(
        "GPU.MIXED_PRECISION",
        False,
        "On a GPU, train and run inference in bfloat16 (float16 before Ampere) and channels_last, with float32 weights, "
        "and with GN as Triton kernels. It takes the place of `SOLVER.AMP`, `TRAIN.AMP_DTYPE`, `TRAIN.CHANNELS_LAST` and "
        "`INFERENCE.DTYPE`. Its speed has not been measured. No effect on CPUs.",
    ),
    Key(
        "INFERENCE.CHANNELS_LAST",
        True,
        "On CPUs, run inference in the channels_last memory format, with a faster RoIAlign that reads whole rows of it. "
        "Evaluations during training keep the memory format of the model. No effect on GPUs.",
        "never",
    ),
    Key(
        "INFERENCE.BATCH_SIZE",
        1,
        "Number of images per batch and process in evaluation. With `MODEL.GN.IGNORE_PADDING`, it does not change the "
        "results.",
    ),
    Key(
        "INFERENCE.DTYPE",
        "float32",
        "Data type of convolutions and GN in inference: `float32` or `bfloat16` (fast on CPUs with AVX-512 BF16 or AMX).",
    ),
    Key(
        "INFERENCE.CUDA_GRAPHS",
        False,
        "On a GPU, replay the backbone and the RPN head as CUDA graphs, one per padded size of the batch. Batches of images "
        "of different sizes run without, unless `MODEL.GN.IGNORE_PADDING` is `False`. Not measured on a GPU yet. No effect "
        "on CPUs.",
        "never",
    ),
    Key(
        "INFERENCE.PASTE_ON_HOST",
        False,
        "On a GPU, copy each mask to the host as the model predicts it (28x28) and paste it there, in evaluation only "
        "within its box. `False`: paste on the GPU, and copy bitmaps of the size of the image. Not measured on a GPU yet. "
        "No effect on CPUs, where evaluation always pastes within boxes.",
        "never",
    ),
    Key(
        "INFERENCE.PREFETCH",
        False,
        "On a GPU, read the next images in a thread, into pinned memory, while the model runs. Not measured on a GPU yet. "
        "No effect on CPUs.",
        "never",
    ),
)


def add_gn_det_config(cfg: CfgNode) -> None:
    """Add gn_det's keys (:data:`KEYS`) to a detectron2 config, in place.

    The keys are ``TEST.FAST_COCO`` and the sections ``MODEL.GN``, ``TRAIN``, ``GPU`` and ``INFERENCE``.
    """
    for key in KEYS:
        *sections, name = key.name.split(".")
        node = cfg
        for section in sections:
            if section not in node:
                node[section] = CfgNode()
            node = node[section]
        node[name] = key.default


def get_cfg() -> CfgNode:
    """Return detectron2's default config with gn_det's keys."""
    cfg = detectron2_get_cfg()
    add_gn_det_config(cfg)
    return cfg
