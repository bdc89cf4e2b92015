"""Every key that gn_det adds to detectron2's config: name, default, meaning, and whether it is part of a recipe."""

from dataclasses import dataclass
from typing import Any, Literal

from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_get_cfg


@dataclass(frozen=True)
class Key:
    """A config key.

    Attributes:
        name: dotted, "MODEL.GN.NUM_GROUPS".
        text: what it does, for the page of all keys.
        recipe: when its value is part of a run's recipe, by which results are compared. "always"; "changed": where it is
            not the default; "never": it changes where or how a run is computed, and not what.
    """

    name: str
    default: Any
    text: str
    recipe: Literal["always", "changed", "never"] = "changed"


KEYS = (
    Key(
        "MODEL.GN.NUM_GROUPS",
        32,
        "The number of groups G of each GN layer (Eq. 7). -1 where `CHANNELS_PER_GROUP` is set.",
        "always",
    ),
    Key(
        "MODEL.GN.CHANNELS_PER_GROUP",
        -1,
        "The number of channels per group, C/G (second panel of Table 3). -1 where `NUM_GROUPS` is set.",
        "always",
    ),
    Key("MODEL.GN.EPS", 1e-5, "The constant under the square root of Eq. 1.", "always"),
    Key(
        "MODEL.GN.ZERO_INIT_RESIDUAL",
        False,
        "Initialize the scale of the last norm of each residual block to 0, as the paper does on ImageNet. Detectron's "
        "COCO models from scratch do not.",
        "always",
    ),
    Key(
        "MODEL.GN.WEIGHT_STANDARDIZATION",
        False,
        "Standardize the weights of convolutions that have a norm (arXiv 1903.10520), as mmdetection's GN+WS models do.",
    ),
    Key(
        "MODEL.GN.FROZENBN_FROM_SCRATCH",
        False,
        "Allow `FrozenBN` without pre-trained weights. It then normalizes nothing; for comparisons only.",
    ),
    Key(
        "MODEL.GN.ACCEPT_WEIGHTS",
        (),
        "Differences to accept between `MODEL.WEIGHTS` and the model: `'norm'`, `'recipe'`, `'classes'`, `'partial'`. "
        "With the last two, tensors that are missing or have another shape are initialized at random.",
    ),
    Key(
        "MODEL.GN.FUSE",
        True,
        "Run GN, the sum with the shortcut and the ReLU as one operation (`gn_det.ops`). The outputs agree to rounding.",
        "never",
    ),
    Key("MODEL.GN.CONFIG", "", "The name of the config file, for result records. `load_config` fills it in.", "always"),
    Key(
        "TEST.FAST_COCO",
        True,
        "Compute COCO's metrics with hotcoco. `False`: with pycocotools, which gives the same numbers more slowly.",
        "never",
    ),
    Key(
        "TRAIN.METRIC",
        "bbox/AP",
        "The metric of `TRAIN.BEST` and `TRAIN.EARLY_STOP`, on the first data set of `DATASETS.TEST`: `bbox/` or `segm/` "
        "and `AP`, `AP50`, ..., `AR100`, `AP-CLASS`.",
    ),
    Key("TRAIN.BEST", False, "Keep the weights of the best evaluation in `OUTPUT_DIR/model_best.pth`.", "never"),
    Key(
        "TRAIN.EARLY_STOP.PATIENCE",
        0,
        "Stop training after this number of evaluations in a row without a gain. 0: never.",
    ),
    Key(
        "TRAIN.EARLY_STOP.MIN_DELTA",
        0.0,
        "An evaluation is a gain if it is better than the best before it by more than this number of percentage points.",
    ),
    Key(
        "TRAIN.EMA.ENABLED",
        False,
        "Evaluate and save the exponential moving average (EMA) of the weights.",
    ),
    Key(
        "TRAIN.EMA.DECAY",
        0.999,
        "The decay of the EMA. It rises to this value as (1 + t) / (10 + t) at iteration t, so that short trainings also "
        "forget their start.",
    ),
    Key(
        "TRAIN.AMP_DTYPE",
        "bfloat16",
        "The data type of mixed precision (`SOLVER.AMP.ENABLED`): `bfloat16`, or on GPUs `float16`.",
    ),
    Key(
        "TRAIN.ACCUMULATE",
        1,
        "Split the images of an iteration into this number of parts, which run one after the other in the memory of one "
        "part. The optimizer still takes one step per iteration.",
    ),
    Key(
        "TRAIN.CHECKPOINT_ACTIVATIONS",
        False,
        "Keep only the input of each ResNet block, and recompute the rest in the backward pass: less memory, more time.",
        "never",
    ),
    Key("TRAIN.CHANNELS_LAST", False, "Keep weights and images in the channels_last memory format.", "never"),
    Key("TRAIN.COMPILE", False, "Compile the backbone with `torch.compile`.", "never"),
    Key(
        "TRAIN.PICTURES",
        3,
        "The number of predictions that each evaluation shows beside the ground truth in TensorBoard and Weights & Biases.",
        "never",
    ),
    Key("TRAIN.WANDB.ENABLED", False, "Log to Weights & Biases as well.", "never"),
    Key("TRAIN.WANDB.PROJECT", "gn_det", "The project there. `WANDB_*` variables set everything else.", "never"),
    Key("TRAIN.WANDB.NAME", "", "The name of the run there. Empty: the name of `OUTPUT_DIR`.", "never"),
    Key(
        "INFERENCE.CHANNELS_LAST",
        True,
        "On a CPU, run inference in the channels_last memory format, which lets RoIAlign read whole rows. A model that is "
        "evaluated during training keeps its own format; so do GPUs.",
        "never",
    ),
    Key(
        "INFERENCE.DTYPE",
        "float32",
        "The data type of convolutions and GN in inference: `float32` or `bfloat16` (fast on CPUs with AVX-512 BF16 or "
        "AMX).",
    ),
)


def add_gn_det_config(cfg: CfgNode) -> None:
    """Add gn_det's keys to a detectron2 config: the sections ``MODEL.GN``, ``TRAIN``, ``INFERENCE``; ``TEST.FAST_COCO``."""
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
