"""What follows an evaluation while a model trains: the best weights are kept, pictures shown, and training may stop."""

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
from fvcore.common.checkpoint import Checkpointer
from PIL import Image

from ..errors import GNDetError
from ..files import replacing

logger = logging.getLogger(__name__)

BEST_FILE = "model_best.pth"
_TRAINING_STATE = ("trainer", "raw_model")  # what of a checkpoint only a resumed training needs
_PICTURE_SIDE = 640  # pixels of the longer side; each picture stays in the event file for ever


def measured_now(trainer: TrainerBase, metric: str) -> float | None:
    """What an evaluation at this very iteration gave for ``metric``; None without one, or where it is NaN."""
    value, iteration = trainer.storage.latest().get(metric, (math.nan, None))
    if iteration != trainer.storage.iter:
        return None
    if math.isnan(value):
        message = f"{metric} is not a number, as the data set has nothing for it to find: choose another TRAIN.METRIC."
        log_first_n(logging.WARNING, message, name=__name__, key="message")
        return None
    return round(value, 4)  # as in a record, from which a resumed run knows it


class BestCheckpoint(HookBase):
    """Keeps the weights of the best evaluation as ``OUTPUT_DIR/model_best.pth``. For the main process.

    detectron2's BestCheckpointer forgets over a resume what the best was, makes its file the one that runs resume from,
    and writes over the last best. Here the file itself says how good it is, and has no state of the training.
    """

    def __init__(self, metric: str, checkpointer: Checkpointer):
        self._metric, self._checkpointer = metric, checkpointer
        self._path = Path(checkpointer.save_dir) / BEST_FILE
        self._best: dict = {}

    def recall(self) -> None:
        """Go on from the file that is there.

        Raises:
            GNDetError: it cannot be read.
        """
        if not self._path.is_file():
            return
        try:
            best = torch.load(self._path, map_location="cpu", mmap=True, weights_only=True)["best"]
        except Exception as error:  # there is no end to what torch.load raises on bytes that are no checkpoint
            raise GNDetError(f"{self._path} is no model_best.pth of a run: move it elsewhere.") from error
        if best["metric"] == self._metric:
            self._best = best
        else:
            logger.warning(f"{self._path} is the best by {best['metric']}; the best by {self._metric} will replace it.")

    def after_step(self) -> None:
        self._keep_if_better()

    def after_train(self) -> None:
        self._keep_if_better()  # of the evaluation at the end
        if self._best:
            logger.info(
                f"The best {self._metric} is {self._best['value']:.2f}, after {self._best['iteration']} iterations: "
                f"{self._path}"
            )

    def _keep_if_better(self) -> None:
        value = measured_now(self.trainer, self._metric)
        if value is None or (self._best and value <= self._best["value"]):
            return
        trained = min(self.trainer.iter + 1, self.trainer.max_iter)  # at the end iter is one too high
        self._best = {"metric": self._metric, "value": value, "iteration": trained}
        data = {"model": self._checkpointer.model.state_dict(), "iteration": trained - 1, "best": self._best}
        for name, kept in self._checkpointer.checkpointables.items():
            if name not in _TRAINING_STATE:
                data[name] = kept.state_dict()
        with replacing(self._path) as part:
            torch.save(data, part)
        logger.info(f"{self._metric} {value:.2f} is the best so far: kept as {self._path}")


class EarlyStopped(BaseException):
    """Ends detectron2's loop, whose range is fixed and which logs an Exception as a failure."""


class EarlyStop(HookBase):
    """Ends training when evaluations no longer get better. To be the last hook: the others have done their step then.

    It has no state in the checkpoint, which is written before the evaluation of its iteration and would miss that; a
    resumed run recalls the values from the records.

    Args:
        period: of the evaluations, in iterations.
        patience: so many evaluations in a row without a gain end it.
        min_delta: what counts as a gain over the best before, in the units of the metric.
    """

    def __init__(self, metric: str, period: int, patience: int, min_delta: float, checkpointer: Checkpointer):
        self._metric, self._period, self._patience, self._min_delta = metric, period, patience, min_delta
        self._checkpointer = checkpointer
        self._values: list[float] = []

    def recall(self, values: Sequence[float]) -> None:
        """Take up the values of the evaluations until now."""
        self._values = [value for value in values if not math.isnan(value)]

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period or done == self.trainer.max_iter:
            return  # there was no evaluation
        value = measured_now(self.trainer, self._metric)
        if value is not None:
            self._values.append(value)
        if reason := self.reason_to_stop():
            logger.info(f"Training stops early, after {done} of {self.trainer.max_iter} iterations: {reason}.")
            self._checkpointer.save("model_final", iteration=self.trainer.iter)
            raise EarlyStopped

    def reason_to_stop(self) -> str:
        """What the main process decides, which alone has the values; "" to go on. To be called in all processes."""
        reason = ""
        if evaluations_without_gain(self._values, self._min_delta) >= self._patience:
            more = f" by more than {self._min_delta:g}" if self._min_delta else ""
            last = "last evaluation" if self._patience == 1 else f"last {self._patience} evaluations"
            reason = f"the {last} did not raise {self._metric} over {max(self._values):.2f}{more}"
        return comm.all_gather(reason)[0]


def evaluations_without_gain(values: Sequence[float], min_delta: float) -> int:
    """How many of the last values were not above the best before them by more than ``min_delta``."""
    best, waited = -math.inf, 0
    for value in values:
        best, waited = (value, 0) if value > best + min_delta else (best, waited + 1)
    return waited


def show_predictions(cfg: CfgNode) -> None:
    """Give the event storage ``TRAIN.PICTURES`` predictions beside the truth, of the first of ``DATASETS.TEST``."""
    if not cfg.TRAIN.PICTURES or not cfg.DATASETS.TEST or importlib.util.find_spec("cv2") is None:
        return
    name = cfg.DATASETS.TEST[0]
    detections = Path(cfg.OUTPUT_DIR, "inference", name, "coco_instances_results.json")
    if not detections.is_file():
        return
    from ..drawing.instances import draw_predictions  # needs cv2

    with tempfile.TemporaryDirectory() as folder:
        for path in draw_predictions(name, detections, folder, number=cfg.TRAIN.PICTURES):
            with Image.open(path) as picture:
                picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
                pixels = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
            get_event_storage().put_image(f"{name}/{path.stem}", pixels.copy())
