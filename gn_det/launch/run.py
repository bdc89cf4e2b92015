"""Run a training or an evaluation in one process, and write its report."""

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
    """Train, or evaluate with ``--eval-only``, and write the report.

    Args:
        args: arguments of :func:`gn_det.launch.arguments.argument_parser`.
    """
    cfg = setup(args)
    if args.eval_only:
        evaluate_only(cfg, resume=args.resume)
    else:
        train(cfg, resume=args.resume)
    finish(cfg)


def setup(args: argparse.Namespace) -> CfgNode:
    """Prepare the config, the logs and the seed of a run, and write ``OUTPUT_DIR/config.yaml``.

    Calls :func:`gn_det.launch.prepare.prepare` and detectron2's ``default_setup``; must be called in
    each process. detectron2's long log lines (environment, full config) only go to
    ``OUTPUT_DIR/log.txt``, not to the terminal.

    Raises:
        GNDetError: as for :func:`gn_det.launch.prepare.prepare`.
    """
    cfg = prepare(args)
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    silence_detectron2()
    if cfg.SEED < 0:
        cfg.SEED = comm.shared_random_seed() % 2**31  # chosen here, so that result records contain it
    cfg.freeze()
    rank = comm.get_rank()
    loggers = [setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="fvcore")]
    loggers += [setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank)]
    loggers += [setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="gn_det", abbrev_name="gn_det")]
    terminals = [h for log in loggers for h in log.handlers if getattr(h, "stream", None) is sys.stdout]
    for handler in terminals:
        handler.setLevel(logging.WARNING)
    # Without config_file: default_setup would log the text of the file as well as the full config.
    args = argparse.Namespace(**{**vars(args), "config_file": ""})
    default_setup(cfg, args)
    for handler in terminals:
        handler.setLevel(logging.DEBUG)
        if not args.eval_only:  # the training overview shows the numbers of instances
            handler.addFilter(lambda record: not record.getMessage().startswith("Distribution of instances"))
    if comm.is_main_process():
        remember_datasets(cfg.OUTPUT_DIR, datasets_of_run(cfg, args.eval_only))
    _log_start(cfg)
    return cfg


def _log_start(cfg: CfgNode) -> None:
    if cfg.MODEL.DEVICE == "cpu" and not torch.cuda.is_available():
        logger.info(f"No GPU found: running on the CPU with {torch.get_num_threads()} threads per process.")
    test = ", ".join(cfg.DATASETS.TEST) or "none, because --val-json is not given"
    logger.info(
        f"{cfg.MODEL.GN.CONFIG}: training data {', '.join(cfg.DATASETS.TRAIN)}; test data {test}; "
        f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES} classes; seed {cfg.SEED}; output in {cfg.OUTPUT_DIR}"
    )


def finish(cfg: CfgNode) -> None:
    """Draw some predictions on each test set, write the report, and log the paths of all results.

    Does nothing in processes other than the main process.
    """
    if not comm.is_main_process():
        return
    folder = Path(cfg.OUTPUT_DIR)
    for name in cfg.DATASETS.TEST:
        detections = folder / "inference" / name / "coco_instances_results.json"
        if detections.is_file():
            _draw(name, detections, folder / "pictures" / name)
    _report(folder)
    results = {
        "report": folder / "report.html",
        "model": folder / "model_final.pth",
        "best model": folder / BEST_FILE,
        "config": folder / "config.yaml",
        "metrics during training": folder / "metrics.json",
        "result records": folder / "records",
        "predictions beside ground truth": folder / "pictures",
        "full log": folder / "log.txt",
    }
    lines = [f"  {name + ':':<34}{path}" for name, path in results.items() if path.exists()]
    logger.info("Done. Results:\n" + "\n".join(lines))


def _report(folder: Path) -> None:
    try:
        from ..report import write_report

        write_report(folder)
    except Exception as error:  # a failing report must not make a successful training fail
        logger.warning(f"No report was written ({type(error).__name__}: {' '.join(str(error).split())}).")


def _draw(dataset_name: str, detections: Path, folder: Path) -> None:
    try:
        from ..drawing.instances import draw_predictions
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise
        logger.warning("No predictions are drawn, because drawing needs OpenCV: pip install opencv-python-headless.")
        return
    draw_predictions(dataset_name, detections, folder)
