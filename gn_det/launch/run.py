"""A run in each of its processes: set up, train or evaluate, report."""

import argparse
import logging
import sys
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..acceleration.cpu_memory import keep_freed_memory
from ..config.checks import datasets_of_run
from ..evaluation.run_folder import remember_datasets
from ..quiet import silence_detectron2
from ..training.hooks import BEST_FILE
from ..training.trainer import evaluate_only, train
from .prepare import prepare

logger = logging.getLogger(__name__)


def main(args: argparse.Namespace) -> None:
    """Train, or with ``--eval-only`` evaluate, as the arguments of :func:`gn_det.launch.arguments.argument_parser` say."""
    cfg = setup(args)
    if args.eval_only:
        evaluate_only(cfg, resume=args.resume)
    else:
        train(cfg, resume=args.resume)
    say_end(cfg)


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
        from ..report import write_report

        write_report(folder)
    except Exception as error:  # whatever it is, the training itself went well
        logger.warning(f"No report was written ({type(error).__name__}: {' '.join(str(error).split())}).")


def _draw(dataset_name: str, detections: Path, folder: Path) -> None:
    try:
        from ..drawing.instances import draw_predictions
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise
        logger.warning("No pictures are drawn: detectron2's drawing needs OpenCV (pip install opencv-python-headless).")
        return
    draw_predictions(dataset_name, detections, folder)
