"""Hooks: save the best weights, stop training early, show predictions, and read metrics from the device."""

import importlib.util
import logging
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from detectron2.utils.logger import log_first_n
from PIL import Image

from ..acceleration.on_device.scalars import PERIOD, read_scalars
from ..checkpoint.checkpointer import Checkpointer
from ..checkpoint.saving import BEST_FILE
from ..errors import GNDetError

logger = logging.getLogger(__name__)

_TRAINING_STATE = ("trainer", "raw_model")  # entries of a checkpoint that only a resumed training needs
_IMAGE_SIZE = 640  # longer side in pixels; kept small because all images stay in the event file


def metric_at_this_iteration(trainer: TrainerBase, metric: str) -> float | None:
    """Return the value of ``metric`` if it was measured after the current iteration, otherwise None.

    None is also returned, with a warning, if the value is NaN.
    """
    value, iteration = trainer.storage.latest().get(metric, (math.nan, None))
    if iteration != trainer.storage.iter:
        return None
    if math.isnan(value):
        message = f"{metric} is NaN, because the dataset has no objects for it: choose another TRAIN.METRIC."
        log_first_n(logging.WARNING, message, name=__name__, key="message")
        return None
    return round(value, 4)  # as in result records, from which a resumed run reads earlier values


class BestCheckpoint(HookBase):
    """Hook that saves the weights of the best evaluation as ``OUTPUT_DIR/model_best.pth``.

    Only for the main process. detectron2's BestCheckpointer forgets the best value when a run is
    resumed, makes its file the one that runs resume from, and overwrites the best weights of
    earlier runs. Here the file itself stores its metric and value, and no state of the training.

    Args:
        metric: name of the metric in the event storage; higher is better.
        checkpointer: its model is saved, with its checkpointables other than the training state.
    """

    def __init__(self, metric: str, checkpointer: Checkpointer):
        self._metric, self._checkpointer = metric, checkpointer
        self._path = Path(checkpointer.save_dir) / BEST_FILE
        self._best: dict = {}

    def restore(self) -> None:
        """Read the best value so far from an existing ``model_best.pth``.

        Raises:
            GNDetError: if the file cannot be read.
        """
        if not self._path.is_file():
            return
        try:
            best = torch.load(self._path, map_location="cpu", mmap=True, weights_only=True)["best"]
        except Exception as error:  # for a damaged file, torch.load raises errors of many types
            raise GNDetError(
                f"{self._path} was not written by gn_det or is damaged: move it to another folder."
            ) from error
        if best["metric"] == self._metric:
            self._best = best
        else:
            logger.warning(
                f"{self._path} has the best weights by {best['metric']}; the best by {self._metric} will replace them."
            )

    def after_step(self) -> None:
        """Save the weights if this iteration was evaluated and is the best so far."""
        self._save_if_best()

    def after_train(self) -> None:
        """Save the weights if the last evaluation is the best so far, and log the best value."""
        self._save_if_best()  # for the evaluation at the end of training
        if self._best:
            logger.info(
                f"The best {self._metric} is {self._best['value']:.2f}, after {self._best['iteration']} iterations: "
                f"{self._path}"
            )

    def _save_if_best(self) -> None:
        value = metric_at_this_iteration(self.trainer, self._metric)
        if value is None or (self._best and value <= self._best["value"]):
            return
        trained = min(self.trainer.iter + 1, self.trainer.max_iter)  # in after_train, iter is one too high
        self._best = {"metric": self._metric, "value": value, "iteration": trained}
        data = {"model": self._checkpointer.model.state_dict(), "iteration": trained - 1, "best": self._best}
        for name, stateful in self._checkpointer.checkpointables.items():
            if name not in _TRAINING_STATE:
                data[name] = stateful.state_dict()
        self._checkpointer.write(BEST_FILE, data)
        logger.info(f"{self._metric} {value:.2f} is the best so far; saved {self._path}")


class EarlyStopped(BaseException):
    """Raised to end detectron2's training loop, which has a fixed length.

    Not an Exception, because detectron2 logs each Exception as a failure.
    """


class EarlyStop(HookBase):
    """Hook that ends training when evaluations no longer improve.

    It must be the last hook, so that all other hooks have finished the iteration. It has no state in
    checkpoints: the checkpoint of an iteration is written before its evaluation and would lack that
    value. A resumed run reads the values from the result records instead.

    Args:
        metric: name of the metric in the event storage; higher is better.
        period: number of iterations between evaluations.
        patience: training ends after this number of consecutive evaluations without an improvement.
        min_delta: a value is an improvement if it exceeds the last improvement by more than this, in
            the unit of the metric.
        checkpointer: saves ``model_final.pth`` when training ends early.
    """

    def __init__(self, metric: str, period: int, patience: int, min_delta: float, checkpointer: Checkpointer):
        self._metric, self._period, self._patience, self._min_delta = metric, period, patience, min_delta
        self._checkpointer = checkpointer
        self._values: list[float] = []

    def restore(self, values: Sequence[float]) -> None:
        """Restore the metric values of earlier evaluations, for a resumed run.

        Args:
            values: values of the metric so far, oldest first; NaN is ignored.
        """
        self._values = [value for value in values if not math.isnan(value)]

    def after_step(self) -> None:
        """End training if the last ``patience`` evaluations were no improvement."""
        done = self.trainer.iter + 1
        if done % self._period or done == self.trainer.max_iter:
            return  # no evaluation after this iteration, or training ends anyway
        value = metric_at_this_iteration(self.trainer, self._metric)
        if value is not None:
            self._values.append(value)
        if reason := self.reason_to_stop():
            logger.info(f"Training stops early, after {done} of {self.trainer.max_iter} iterations: {reason}.")
            self._checkpointer.save("model_final", iteration=self.trainer.iter)
            raise EarlyStopped

    def reason_to_stop(self) -> str:
        """Return why training must stop, as a clause; an empty string if it continues.

        Must be called in all processes. The main process, which alone has the values, decides for all.
        """
        reason = ""
        if evaluations_without_improvement(self._values, self._min_delta) >= self._patience:
            margin = f" by more than {self._min_delta:g}" if self._min_delta else ""
            last = "last evaluation" if self._patience == 1 else f"last {self._patience} evaluations"
            reason = f"the {last} did not raise {self._metric} over {max(self._values):.2f}{margin}"
        return comm.all_gather(reason)[0]


def evaluations_without_improvement(values: Sequence[float], min_delta: float) -> int:
    """Return the number of evaluations since the last improvement.

    Args:
        values: one value per evaluation, oldest first.
        min_delta: a value is an improvement if it exceeds the last improvement by more than this.
    """
    best, waited = -math.inf, 0
    for value in values:
        best, waited = (value, 0) if value > best + min_delta else (best, waited + 1)
    return waited


def show_predictions(cfg: CfgNode) -> None:
    """Add images of predictions beside the ground truth to the event storage, for TensorBoard.

    ``TRAIN.PICTURES`` images are drawn, from the first dataset of ``DATASETS.TEST``. Does nothing
    without detections of that dataset in ``OUTPUT_DIR``, or if OpenCV is not installed.
    """
    if not cfg.TRAIN.PICTURES or not cfg.DATASETS.TEST or importlib.util.find_spec("cv2") is None:
        return
    name = cfg.DATASETS.TEST[0]
    detections = Path(cfg.OUTPUT_DIR, "inference", name, "coco_instances_results.json")
    if not detections.is_file():
        return
    from ..drawing.instances import draw_predictions  # needs cv2

    try:
        with tempfile.TemporaryDirectory() as folder:
            for path in draw_predictions(name, detections, folder, number=cfg.TRAIN.PICTURES):
                with Image.open(path) as picture:
                    picture.thumbnail((_IMAGE_SIZE, _IMAGE_SIZE))
                    pixels = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
                drawn = path.relative_to(folder).with_suffix("").as_posix()
                get_event_storage().put_image(f"{name}/{drawn}", pixels.copy())
    except (OSError, GNDetError) as error:
        log_first_n(logging.WARNING, f"No predictions are drawn: {error}", name=__name__, key="caller")


class ReadMetrics(HookBase):
    """Reads the metrics that ``TRAIN.FEWER_SYNCS`` keeps on the device, before the writers write them."""

    def after_step(self) -> None:
        """Read them once per period of the writers, and in the last iteration."""
        done = self.trainer.iter + 1
        if done % PERIOD == 0 or done == self.trainer.max_iter:
            read_scalars(self.trainer.storage)

    def after_train(self) -> None:
        """Read the rest if the training ends early."""
        read_scalars(self.trainer.storage)
