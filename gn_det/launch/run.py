"""Run a training or an evaluation in one process, and write its report."""

import argparse
import contextlib
import logging
import os
import sys
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..acceleration.cpu_memory import keep_freed_memory
from ..checkpoint.newest import has_checkpoints, seed_of_run
from ..checkpoint.saving import BEST_FILE
from ..config.checks import datasets_of_run
from ..errors import GNDetError
from ..evaluation.records import Weights
from ..quiet import silence_detectron2
from ..training.guards.disk import tolerate_log_errors
from ..training.trainer import evaluate_only, train
from .output_dir import (
    EVALUATIONS,
    evaluation_folder,
    is_training,
    leftovers_in,
    remove_staged_files,
    set_aside,
    write_description,
)
from .owner import owned
from .prepare import prepare

logger = logging.getLogger(__name__)


def main(args: argparse.Namespace) -> None:
    """Train, or evaluate with ``--eval-only``, and write the report.

    ``OUTPUT_DIR`` is locked during the run, and files in it are replaced only after the weights have been
    loaded. An evaluation whose ``OUTPUT_DIR`` is that of a training writes to a folder below it.

    Args:
        args: arguments of :func:`gn_det.launch.arguments.argument_parser`.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(remove_staged_files)  # of a command that is refused
        cfg = prepare(args)
        finish(_evaluate(cfg, args, stack) if args.eval_only else _train(cfg, args, stack))


def _train(cfg: CfgNode, args: argparse.Namespace, stack: contextlib.ExitStack) -> CfgNode:
    stack.enter_context(owned(cfg.OUTPUT_DIR))
    resumes = args.resume and has_checkpoints(cfg.OUTPUT_DIR)
    leftovers = [] if resumes or not comm.is_main_process() else leftovers_in(cfg.OUTPUT_DIR)
    _set_up(cfg, args, cfg.OUTPUT_DIR)

    def accept() -> None:
        set_aside(leftovers, cfg.OUTPUT_DIR)
        write_description(cfg, datasets_of_run(cfg, eval_only=False))

    train(cfg, args.resume, accept)
    return cfg


def _evaluate(cfg: CfgNode, args: argparse.Namespace, stack: contextlib.ExitStack) -> CfgNode:
    """Evaluate, and return the config with the ``OUTPUT_DIR`` of the results."""
    below = is_training(cfg.OUTPUT_DIR)
    if not below:
        stack.enter_context(owned(cfg.OUTPUT_DIR))
    _set_up(cfg, args, os.path.join(cfg.OUTPUT_DIR, EVALUATIONS) if below else cfg.OUTPUT_DIR)
    used = cfg.clone()

    def accept(weights: Weights | None) -> CfgNode:
        if below:
            used.defrost()
            used.OUTPUT_DIR = evaluation_folder(cfg, weights)
            used.freeze()
            stack.enter_context(owned(used.OUTPUT_DIR))
            logger.info(f"OUTPUT_DIR is that of a training: the results of this evaluation go to {used.OUTPUT_DIR}")
        write_description(used, datasets_of_run(cfg, eval_only=True))
        return used

    evaluate_only(cfg, args.resume, accept)
    return used


def setup(args: argparse.Namespace) -> CfgNode:
    """Prepare the config, the datasets, the logs and the seed of a run, and write ``OUTPUT_DIR/config.yaml``.

    For programs that train by themselves. It must be called in each process, and does not lock the folder.

    Raises:
        GNDetError: as for :func:`gn_det.launch.prepare.prepare`.
    """
    cfg = prepare(args)
    _set_up(cfg, args, cfg.OUTPUT_DIR)
    write_description(cfg, datasets_of_run(cfg, args.eval_only))
    return cfg


def _set_up(cfg: CfgNode, args: argparse.Namespace, log_folder: str) -> None:
    """Configure the process, its logs and its seed, and freeze the config. Must be called in each process.

    Does what detectron2's ``default_setup`` does, which would also replace ``OUTPUT_DIR/config.yaml``. The
    environment and the full config only go to ``log.txt`` in ``log_folder``, not to the terminal.
    """
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    silence_detectron2()
    if cfg.SEED < 0:  # chosen here, so that result records contain it
        cfg.SEED = _seed_to_resume(cfg, args) or comm.shared_random_seed() % 2**31
    cfg.freeze()
    rank = comm.get_rank()
    loggers = [setup_logger(log_folder, distributed_rank=rank, name="fvcore")]
    loggers += [setup_logger(log_folder, distributed_rank=rank)]
    loggers += [setup_logger(log_folder, distributed_rank=rank, name="gn_det", abbrev_name="gn_det")]
    tolerate_log_errors()
    terminals = [h for log in loggers for h in log.handlers if getattr(h, "stream", None) is sys.stdout]
    for handler in terminals:
        handler.setLevel(logging.WARNING)
    logger.info(f"Rank of this process: {rank}. Processes: {comm.get_world_size()}")
    logger.info(f"Environment info:\n{collect_env_info()}")
    logger.info(f"Command line arguments: {args}")
    logger.info(f"Running with full config:\n{cfg.dump()}")
    seed_all_rng(cfg.SEED + rank)
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    for handler in terminals:
        handler.setLevel(logging.DEBUG)
        if not args.eval_only:  # the training overview shows the numbers of instances
            handler.addFilter(lambda record: not record.getMessage().startswith("Distribution of instances"))
    _log_start(cfg)


def _seed_to_resume(cfg: CfgNode, args: argparse.Namespace) -> int:
    """Return the seed of the run that is resumed; 0 if there is none, or it is not known."""
    resumes = args.resume and not args.eval_only and has_checkpoints(cfg.OUTPUT_DIR)
    seed = seed_of_run(cfg.OUTPUT_DIR) if comm.is_main_process() and resumes else 0
    return int(comm.all_gather(seed)[0])


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
    try:
        draw_predictions(dataset_name, detections, folder)
    except (OSError, GNDetError) as error:  # pictures that cannot be written must not make a successful training fail
        logger.warning(f"Predictions are not drawn: {error}")
