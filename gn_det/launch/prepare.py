"""Turn parsed arguments into a checked config, and register its datasets."""

import argparse
import os
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from ..acceleration.device import choose_device
from ..checkpoint.newest import has_checkpoints
from ..checkpoint.uri import check_name
from ..config.checks import check_accumulation, check_config, datasets_of_run
from ..config.graph_checks import check_cuda_graphs
from ..data.coco import register_coco_json
from ..errors import GNDetError
from ..evaluation.run_folder import register_datasets
from .arguments import config_from_args
from .output_dir import OWN, is_trained, staged_file


def prepare(args: argparse.Namespace, needs_weights: bool = True) -> CfgNode:
    """Return the checked config of a run, and register its datasets.

    Creates ``OUTPUT_DIR``, and writes nothing to it. Cleaned copies of your own annotation files are written to
    a temporary folder.

    Args:
        args: arguments of :func:`gn_det.launch.arguments.argument_parser`.
        needs_weights: whether the run loads weights. If so, it is checked here that
            ``MODEL.WEIGHTS`` is an existing file, a known name or a URL. The content is checked later.

    Raises:
        GNDetError: for a mistake in the arguments, the config or the data.
    """
    cfg = config_from_args(args)
    cfg.MODEL.DEVICE = _choose_device(cfg, args.opts)
    # More workers than cores would compete for the cores.
    cfg.DATALOADER.NUM_WORKERS = min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)
    has_checkpoint = _check_output_dir(cfg, args)
    _register_datasets_of_run(cfg, args)
    _use_own_data(cfg, args)
    check_config(cfg, has_checkpoint=has_checkpoint or not needs_weights, eval_only=args.eval_only)
    for name in datasets_of_run(cfg, args.eval_only):
        _check_dataset_files(name)
    processes = max(comm.get_world_size(), args.num_gpus * args.num_machines)
    if cfg.SOLVER.IMS_PER_BATCH % processes and not cfg.SOLVER.REFERENCE_WORLD_SIZE and not args.eval_only:
        raise GNDetError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {processes} processes cannot share evenly: use a "
            f"multiple of {processes}."
        )
    if not args.eval_only:
        check_accumulation(cfg, processes)
        check_cuda_graphs(cfg, processes)
    if args.eval_only and needs_weights and not cfg.MODEL.WEIGHTS and not has_checkpoint:
        raise GNDetError("--eval-only needs weights: set MODEL.WEIGHTS, or pass --resume with the OUTPUT_DIR of a run.")
    if args.eval_only and not cfg.DATASETS.TEST:
        raise GNDetError("--eval-only needs a dataset: pass --val-json and --val-images, or set DATASETS.TEST.")
    if needs_weights and cfg.MODEL.WEIGHTS and not has_checkpoint:
        check_name(cfg.MODEL.WEIGHTS)
    return cfg


def _choose_device(cfg: CfgNode, opts: list[str]) -> str:
    """Return ``MODEL.DEVICE``, or the CPU on a machine without a GPU.

    A GPU that is set on the command line, and not by the config file, must exist.

    Raises:
        GNDetError: as for :func:`gn_det.acceleration.device.choose_device`.
    """
    name = cfg.MODEL.DEVICE
    if name.startswith("cuda") and "MODEL.DEVICE" not in opts and not torch.cuda.is_available():
        return "cpu"
    return choose_device(name, "MODEL.DEVICE")


def _check_output_dir(cfg: CfgNode, args: argparse.Namespace) -> bool:
    """Create ``OUTPUT_DIR``, and return whether the run continues from a checkpoint in it.

    Raises:
        GNDetError: if the folder is not given or cannot be written to, or a new run would overwrite another one.
    """
    if not cfg.OUTPUT_DIR:
        raise GNDetError("OUTPUT_DIR is empty: set it to the folder for the results of the run.")
    folder = Path(cfg.OUTPUT_DIR)
    if is_trained(folder) and not args.resume and not args.eval_only:
        raise GNDetError(
            f"OUTPUT_DIR {folder} already contains a run: continue it with --resume, or use another OUTPUT_DIR."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GNDetError(f"OUTPUT_DIR {folder} cannot be created: {error.strerror}.") from None
    if not os.access(folder, os.W_OK):
        raise GNDetError(f"OUTPUT_DIR {folder} cannot be written to: use another OUTPUT_DIR.")
    return bool(args.resume) and has_checkpoints(folder)


def _register_datasets_of_run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Register the own datasets of an earlier run, if the config is its ``config.yaml`` or it is resumed."""
    folders = [Path(args.config_file).expanduser().parent] + [Path(cfg.OUTPUT_DIR)] * args.resume
    for folder in folders:
        register_datasets(folder, [name for name in datasets_of_run(cfg, args.eval_only) if name.startswith(OWN)])


def _check_dataset_files(name: str) -> None:
    metadata = MetadataCatalog.get(name)
    if name.startswith("shapes_"):
        return  # generated when it is first read
    for kind in ("json_file", "image_root"):
        path = metadata.get(kind)
        if path and not os.path.exists(path):
            raise GNDetError(
                f"The dataset {name} is missing: {path} does not exist; set DETECTRON2_DATASETS to the folder of the "
                "datasets, or pass your own data with --train-json and --val-json."
            )


def _use_own_data(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Register the data of ``--train-json`` and ``--val-json``, and adapt the config to it."""
    registered = {}
    if given := [f"--{role}-json" for role in ("train", "val") if getattr(args, f"{role}_json")]:
        for split in ("TRAIN", "TEST"):
            if f"DATASETS.{split}" in args.opts and cfg.DATASETS[split]:
                raise GNDetError(
                    f"DATASETS.{split} and {given[0]} are both given, but your own data replace the datasets of the config: "
                    "pass --train-json and --val-json, or DATASETS.TRAIN and DATASETS.TEST."
                )
    for role, split in (("train", "TRAIN"), ("val", "TEST")):
        json_file, images = getattr(args, f"{role}_json"), getattr(args, f"{role}_images")
        if bool(json_file) != bool(images):
            raise GNDetError(f"--{role}-json and --{role}-images go together: pass both.")
        if json_file:
            name = f"{OWN}{Path(json_file).resolve().parent.name}_{role}"
            facts = register_coco_json(name, json_file, images, staged_file(name), masks=cfg.MODEL.MASK_ON)
            registered[role] = facts | {"json": json_file}
            cfg.DATASETS[split] = (name,)
    if not registered:
        return
    if "train" in registered and "val" not in registered:
        cfg.DATASETS.TEST = ()
    if "val" in registered and "train" not in registered and not args.eval_only:
        raise GNDetError("--val-json is given without --train-json: pass the training data too, or --eval-only.")
    if len({tuple(data["classes"]) for data in registered.values()}) > 1:
        train, val = registered["train"], registered["val"]
        raise GNDetError(
            f"{train['json']} has the classes {train['classes']}, but {val['json']} has {val['classes']}; both need the "
            "same categories with the same ids."
        )
    _adapt_config(cfg, args, registered)


def _adapt_config(cfg: CfgNode, args: argparse.Namespace, registered: dict[str, dict]) -> None:
    """Set NUM_CLASSES and the mask format to those of the data.

    Args:
        registered: what :func:`gn_det.data.coco.register_coco_json` returned, and the file as "json",
            for "train" and "val".
    """
    data = next(iter(registered.values()))
    if "MODEL.ROI_HEADS.NUM_CLASSES" not in args.opts:  # otherwise check_config compares it with the data
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(data["classes"])
    for role, data in registered.items():
        if role == "train" and not data["objects"]:
            crowds = (
                f": all {data['crowds']} annotations are crowd regions (iscrowd 1); if they are objects, gn-det check "
                f"{data['json']} --fix NEW.json writes a copy with iscrowd 0"
                if data["crowds"]
                else ""
            )
            raise GNDetError(f"{data['json']} has no objects to train on{crowds}.")
        if cfg.MODEL.MASK_ON and data["objects"] and not data["masks"]:
            raise GNDetError(
                f"{data['json']} has boxes but no masks: set MODEL.MASK_ON to False to train on boxes only."
            )
        if data["rle"]:
            cfg.INPUT.MASK_FORMAT = "bitmask"  # the only format for which detectron2 reads run-length masks
