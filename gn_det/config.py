"""The keys that gn_det adds to detectron2's config, reading of configs, and refusal of what cannot work."""

import contextlib
import difflib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from .errors import GNDetError, did_you_mean
from .inference import add_inference_keys, check_inference
from .norm import NORM_KEYS, PER_SAMPLE, check_norm, get_key
from .switches import add_switches, check_switches

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


def add_gn_det_config(cfg: CfgNode) -> None:
    """Add gn_det's keys to a detectron2 config: ``MODEL.GN``, ``TRAIN``, ``INFERENCE``, ``TEST.FAST_COCO``."""
    cfg.MODEL.GN = CfgNode()
    # The number of groups G, or the channels of a group C/G (Table 3 of the paper): one of the two, the other is -1.
    cfg.MODEL.GN.NUM_GROUPS = 32
    cfg.MODEL.GN.CHANNELS_PER_GROUP = -1
    cfg.MODEL.GN.EPS = 1e-5
    # Scale 0 in each residual block's last norm: the paper's ImageNet recipe, not Detectron's for COCO from scratch.
    cfg.MODEL.GN.ZERO_INIT_RESIDUAL = False
    # Standardise the weights of convolutions with a norm (arXiv 1903.10520), as mmdetection's "GN+WS" models do.
    cfg.MODEL.GN.WEIGHT_STANDARDIZATION = False
    # Let BN* train without pre-trained statistics: then it normalises nothing. For comparisons only.
    cfg.MODEL.GN.FROZENBN_FROM_SCRATCH = False
    # What may differ between MODEL.WEIGHTS and the model: "norm", "recipe"; "classes", "partial" (what differs is random).
    cfg.MODEL.GN.ACCEPT_WEIGHTS = ()
    # GN, the sum with the shortcut and the ReLU as one operation (gn_det.ops).
    cfg.MODEL.GN.FUSE = True
    # The name of the config file, for records. load_config fills it in.
    cfg.MODEL.GN.CONFIG = ""
    # COCO's metrics by hotcoco, in the place of pycocotools and with its numbers. False: by pycocotools.
    cfg.TEST.FAST_COCO = True
    add_switches(cfg)
    add_inference_keys(cfg)


def get_cfg() -> CfgNode:
    """detectron2's default config with gn_det's keys."""
    cfg = detectron2_get_cfg()
    add_gn_det_config(cfg)
    return cfg


def config_dir() -> Path:
    """The folder of the shipped configs: in the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"


def shipped_configs() -> dict[str, Path]:
    """Name -> file of each shipped config, those in sub-folders among them."""
    return {path.stem: path for path in sorted(config_dir().rglob("*.yaml"))}


def find_config(name: str) -> Path:
    """The file of a config: a path, or the name of a shipped one (``mask_rcnn_R50_FPN_gn``).

    Raises:
        GNDetError: there is no such file.
    """
    path = Path(os.path.expanduser(name))
    if path.is_file():
        return path
    known = shipped_configs()
    shipped = known.get(path.stem)
    if shipped and path.parent.name in ("", "configs", shipped.parent.name):
        return shipped
    near = difflib.get_close_matches(path.stem, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the shipped ones lie in {config_dir()}."
    raise GNDetError(f"There is no config {name}; {hint}")


def load_config(name: str, opts: Sequence[str] = ()) -> CfgNode:
    """The config of a file (or shipped name) with ``KEY VALUE`` overrides.

    Raises:
        GNDetError: no such file, not YAML, unknown key (with the nearest known one), or a value of the wrong type.
    """
    cfg = get_cfg()
    path = find_config(name)
    with _as_sentence(cfg, str(path)):
        # detectron2's default would run the Python tags of a YAML file.
        cfg.merge_from_file(str(path), allow_unsafe=False)
    if len(opts) % 2:
        raise GNDetError(f"The overrides on the command line are KEY VALUE pairs, but {opts[-1]!r} stands alone.")
    _check_keys(cfg, opts[::2])
    with _as_sentence(cfg, "the command line"):
        cfg.merge_from_list(list(opts))
    # A config.yaml that a run has left in its OUTPUT_DIR says which one it was.
    cfg.MODEL.GN.CONFIG = cfg.MODEL.GN.CONFIG or path.stem
    return cfg


def parse_config(text: str, where: str) -> CfgNode:
    """The config in a YAML text, with no tag and no ``_BASE_`` of it followed; ``where`` names it in errors.

    Raises:
        GNDetError: as :func:`load_config`.
    """
    cfg = get_cfg()
    with _as_sentence(cfg, where):
        cfg.merge_from_other_cfg(CfgNode.load_cfg(text))
    return cfg


@contextlib.contextmanager
def _as_sentence(cfg: CfgNode, where: str) -> Iterator[None]:
    """Turn what yacs, yaml and fvcore raise while they merge into one sentence."""
    try:
        yield
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise GNDetError(f"{where}{line} is not a plain YAML config: {problem}.") from None
    except FileNotFoundError as error:
        raise GNDetError(f"{where}: its _BASE_ {error.filename} is not there.") from None
    except OSError as error:
        raise GNDetError(f"{where}: its _BASE_ {error.filename} cannot be read ({error.strerror}).") from None
    except RecursionError:
        raise GNDetError(f"{where}: its _BASE_ leads back to itself.") from None
    except (KeyError, AssertionError, ValueError, TypeError, AttributeError) as error:
        raise GNDetError(f"{where}: {_explain(cfg, str(error).strip(chr(34) + chr(39)))}") from None


def _explain(cfg: CfgNode, message: str) -> str:
    if key := re.search(r"Non-existent (?:config )?key: (\S+)", message):
        return _unknown_key(cfg, key[1].strip("'\""))
    types = (
        r"Type mismatch \(<class '([\w.]+)'> vs. <class '([\w.]+)'>\) with values \(.* vs. (.*)\) for config key: (\S+)"
    )
    if m := re.search(types, message, re.DOTALL):
        want, got, value, name = m.groups()
        if want.endswith("CfgNode"):
            return f"{name} is a section with keys of its own, and takes no value."
        if got.endswith("CfgNode"):
            return f"{name} takes a value of type {want}, and has no keys of its own."
        hint = f" (write {value}.0)" if (want, got) == ("float", "int") else ""
        return f"{name} takes a value of type {want}, not the {got} {value}{hint}."
    if "is not iterable" in message or "has no attribute" in message:
        return "holds no config (it is empty, or not KEY: VALUE lines)."
    return message.splitlines()[0] if message else "is not a config."


def _check_keys(cfg: CfgNode, keys: Sequence[str]) -> None:
    """Unknown keys of the command line, also those below a value, on which yacs stumbles."""
    for key in keys:
        node: object = cfg
        for part in key.split("."):
            if not isinstance(node, CfgNode) or part not in node:
                raise GNDetError(f"the command line: {_unknown_key(cfg, key)}")
            node = node[part]


def _unknown_key(cfg: CfgNode, name: str) -> str:
    if name.startswith("-"):
        return f"the option {name} must stand before the KEY VALUE pairs."
    return f"there is no config key {name}{did_you_mean(name, _all_keys(cfg))}."


def _all_keys(node: CfgNode, prefix: str = "") -> list[str]:
    """All dotted keys, sections among them."""
    keys: list[str] = []
    for name, value in node.items():
        keys += [prefix + name] + (_all_keys(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else [])
    return keys


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
