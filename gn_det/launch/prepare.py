"""From parsed arguments to a checked config with its data sets registered."""

import argparse
import os
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from ..acceleration.device import choose_device
from ..checkpoint.uri import check_name
from ..config.checks import check_accumulation, check_config, datasets_of_run
from ..data.coco import register_coco_json
from ..errors import GNDetError
from .arguments import config_of


def prepare(args: argparse.Namespace, weights: bool = True) -> CfgNode:
    """The checked config of a run, with its data sets registered. Writes only the cleaned JSON of own data.

    Args:
        weights: whether the run needs them. That they are there, or may be downloaded, is seen here; what is in them, later.

    Raises:
        GNDetError: whatever in the arguments, the config or the data cannot work.
    """
    cfg = config_of(args)
    cfg.MODEL.DEVICE = _device(cfg, args.opts)
    cfg.DATALOADER.NUM_WORKERS = min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)  # more only compete
    has_checkpoint = _check_output_dir(cfg, args)
    _use_own_data(cfg, args)
    check_config(cfg, has_checkpoint=has_checkpoint or not weights, eval_only=args.eval_only)
    for name in datasets_of_run(cfg, args.eval_only):
        _check_files(name)
    processes = max(comm.get_world_size(), args.num_gpus * args.num_machines)
    if cfg.SOLVER.IMS_PER_BATCH % processes and not cfg.SOLVER.REFERENCE_WORLD_SIZE and not args.eval_only:
        raise GNDetError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {processes} processes cannot share evenly: take a "
            f"multiple of {processes}."
        )
    if not args.eval_only:
        check_accumulation(cfg, processes)
    if args.eval_only and weights and not cfg.MODEL.WEIGHTS and not has_checkpoint:
        raise GNDetError("--eval-only needs weights: give MODEL.WEIGHTS, or --resume with the OUTPUT_DIR of a run.")
    if args.eval_only and not cfg.DATASETS.TEST:
        raise GNDetError("--eval-only needs a data set: give --val-json and --val-images, or DATASETS.TEST.")
    if weights and cfg.MODEL.WEIGHTS and not has_checkpoint:
        check_name(cfg.MODEL.WEIGHTS)
    return cfg


def _device(cfg: CfgNode, opts: list[str]) -> str:
    """``MODEL.DEVICE``, but for a GPU that only the config asks for and this machine does not have: that is the CPU."""
    name = cfg.MODEL.DEVICE
    if name.startswith("cuda") and "MODEL.DEVICE" not in opts and not torch.cuda.is_available():
        return "cpu"
    return choose_device(name, "MODEL.DEVICE")


def _check_output_dir(cfg: CfgNode, args: argparse.Namespace) -> bool:
    """Whether the run continues from a checkpoint in ``OUTPUT_DIR``; refuses to train over another run's."""
    folder = Path(cfg.OUTPUT_DIR)
    found = (folder / "last_checkpoint").is_file()
    if found and not args.resume and not args.eval_only:
        raise GNDetError(
            f"OUTPUT_DIR {folder} holds a run already: continue it with --resume, or name another OUTPUT_DIR."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GNDetError(f"OUTPUT_DIR {folder} cannot be made: {error.strerror}.") from None
    if not os.access(folder, os.W_OK):
        raise GNDetError(f"OUTPUT_DIR {folder} cannot be written to.")
    return found and args.resume


def _check_files(name: str) -> None:
    metadata = MetadataCatalog.get(name)
    if name.startswith("shapes_"):
        return  # made when first asked for
    for kind in ("json_file", "image_root"):
        path = metadata.get(kind)
        if path and not os.path.exists(path):
            raise GNDetError(
                f"The data set {name} is not there: {path} is missing; set DETECTRON2_DATASETS to the folder that holds "
                "it, or give your own data by --train-json and --val-json."
            )


def _use_own_data(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Register ``--train-json`` and ``--val-json`` and let the config follow them."""
    known = {}
    for role, split in (("train", "TRAIN"), ("val", "TEST")):
        json_file, images = getattr(args, f"{role}_json"), getattr(args, f"{role}_images")
        if bool(json_file) != bool(images):
            raise GNDetError(f"--{role}-json and --{role}-images go together: give both.")
        if json_file:
            name = f"own_{Path(json_file).resolve().parent.name}_{role}"  # no name of detectron2's begins so
            clean = Path(cfg.OUTPUT_DIR) / "data" / f"{name}.json"
            known[role] = register_coco_json(name, json_file, images, clean) | {"json": json_file}
            cfg.DATASETS[split] = (name,)
    if not known:
        return
    if "train" in known and "val" not in known:
        cfg.DATASETS.TEST = ()
    if "val" in known and "train" not in known and not args.eval_only:
        raise GNDetError("--val-json is given without --train-json: what is to be trained on?")
    if len({tuple(facts["classes"]) for facts in known.values()}) > 1:
        train, val = known["train"], known["val"]
        raise GNDetError(
            f"{train['json']} has the classes {train['classes']}, but {val['json']} has {val['classes']}; both need the "
            "same categories with the same ids."
        )
    _follow_data(cfg, args, known)


def _follow_data(cfg: CfgNode, args: argparse.Namespace, known: dict[str, dict]) -> None:
    """NUM_CLASSES and mask format as the data have them."""
    facts = next(iter(known.values()))
    if "MODEL.ROI_HEADS.NUM_CLASSES" not in args.opts:  # else check_config compares
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(facts["classes"])
    for role, facts in known.items():
        if role == "train" and not facts["objects"]:
            raise GNDetError(f"{facts['json']} has no objects to train on.")
        if cfg.MODEL.MASK_ON and facts["objects"] and not facts["masks"]:
            raise GNDetError(
                f"{facts['json']} has boxes but no masks: set MODEL.MASK_ON False to train on boxes alone."
            )
        if facts["rle"]:
            cfg.INPUT.MASK_FORMAT = "bitmask"  # detectron2 reads run-length masks only so
