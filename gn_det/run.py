"""From a command line to a run: arguments, their check, setup, and what is said at the end."""

import argparse
import logging
import os
import sys
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from . import datasets
from .config import check_config, datasets_of_run, load_config
from .device import choose_device
from .errors import GNDetError
from .heap import keep_freed_memory
from .hooks import BEST_FILE
from .quiet import silence_detectron2
from .run_folder import remember_datasets
from .switches import check_accumulation
from .weights import check_name

logger = logging.getLogger(__name__)


def argument_parser(description: str) -> argparse.ArgumentParser:
    """detectron2's arguments, with ``--config`` for ``--config-file`` and the flags for one's own data."""
    parser = default_argument_parser(epilog="KEY VALUE pairs at the end override the config: SOLVER.BASE_LR 0.01")
    parser.description = description
    config = next(action for action in parser._actions if action.dest == "config_file")
    config.help = "path of a config, or name of a shipped one (mask_rcnn_R50_FPN_gn)"
    parser.add_argument("--config", dest="config_file", metavar="FILE", help="the same as --config-file")
    own = parser.add_argument_group("your own data, in COCO's format; classes and NUM_CLASSES follow from it")
    own.add_argument("--train-json", metavar="JSON", help="annotations to train on")
    own.add_argument("--train-images", metavar="DIR", help="the folder that its file_names are relative to")
    own.add_argument("--val-json", metavar="JSON", help="annotations to evaluate on")
    own.add_argument("--val-images", metavar="DIR", help="the folder of the validation images")
    return parser


def config_of(args: argparse.Namespace) -> CfgNode:
    """The config that the arguments name, with their overrides.

    Raises:
        GNDetError: none is named, or as :func:`gn_det.config.load_config`.
    """
    if not args.config_file:
        raise GNDetError("Name a config: --config configs/mask_rcnn_R50_FPN_gn.yaml")
    return load_config(args.config_file, args.opts)


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
            known[role] = datasets.register_coco_json(name, json_file, images, clean) | {"json": json_file}
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


def setup(args: argparse.Namespace) -> CfgNode:
    """:func:`prepare`, then detectron2's ``default_setup``: logs, ``OUTPUT_DIR/config.yaml``, seed. Called in each process.

    The long part of what detectron2 says (environment, full config) goes to ``OUTPUT_DIR/log.txt`` only.
    """
    cfg = prepare(args)
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    silence_detectron2()
    if cfg.SEED < 0:
        cfg.SEED = comm.shared_random_seed() % 2**31  # a record names its seed
    cfg.freeze()
    rank = comm.get_rank()
    loggers = [setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="fvcore")]
    loggers += [setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank)]
    loggers += [setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="gn_det", abbrev_name="gn_det")]
    terminals = [h for log in loggers for h in log.handlers if getattr(h, "stream", None) is sys.stdout]
    for handler in terminals:
        handler.setLevel(logging.WARNING)
    args = argparse.Namespace(**{**vars(args), "config_file": ""})  # its text is part of the full config
    default_setup(cfg, args)
    for handler in terminals:
        handler.setLevel(logging.DEBUG)
        if not args.eval_only:  # the overview of the training has these numbers
            handler.addFilter(lambda record: not record.getMessage().startswith("Distribution of instances"))
    if comm.is_main_process():
        remember_datasets(cfg.OUTPUT_DIR, datasets_of_run(cfg, args.eval_only))
    _say_start(cfg)
    return cfg


def _say_start(cfg: CfgNode) -> None:
    if cfg.MODEL.DEVICE == "cpu" and not torch.cuda.is_available():
        logger.info(f"No GPU here: running on the CPU with {torch.get_num_threads()} threads a process.")
    data = f"{', '.join(cfg.DATASETS.TRAIN)} -> {', '.join(cfg.DATASETS.TEST) or 'no evaluation, as no --val-json is given'}"
    logger.info(
        f"{cfg.MODEL.GN.CONFIG}: {data}; {cfg.MODEL.ROI_HEADS.NUM_CLASSES} classes, seed {cfg.SEED}; all goes to "
        f"{cfg.OUTPUT_DIR}"
    )


def say_end(cfg: CfgNode) -> None:
    """Draw a few predictions on each test set, write the report, and say where everything lies. For the main process."""
    if not comm.is_main_process():
        return
    folder = Path(cfg.OUTPUT_DIR)
    for name in cfg.DATASETS.TEST:
        detections = folder / "inference" / name / "coco_instances_results.json"
        if detections.is_file():
            _draw(name, detections, folder / "pictures" / name)
    _report(folder)
    places = {
        "report, all on one page": folder / "report.html",
        "model": folder / "model_final.pth",
        "best model": folder / BEST_FILE,
        "config": folder / "config.yaml",
        "metrics over time": folder / "metrics.json",
        "result records": folder / "records",
        "predicted masks beside the truth": folder / "pictures",
        "full log": folder / "log.txt",
    }
    lines = [f"  {what + ':':<34}{path}" for what, path in places.items() if path.exists()]
    logger.info("Done. What there is now:\n" + "\n".join(lines))


def _report(folder: Path) -> None:
    try:
        from .report import write_report

        write_report(folder)
    except Exception as error:  # whatever it is, the training itself went well
        logger.warning(f"No report was written ({type(error).__name__}: {' '.join(str(error).split())}).")


def _draw(dataset_name: str, detections: Path, folder: Path) -> None:
    try:
        from .visualize import draw_predictions
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise
        logger.warning("No pictures are drawn: detectron2's drawing needs OpenCV (pip install opencv-python-headless).")
        return
    draw_predictions(dataset_name, detections, folder)
