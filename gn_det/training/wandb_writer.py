"""Event writer that logs losses, AP, images and the config to Weights & Biases."""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from ..checkpoint.newest import has_checkpoints
from ..errors import GNDetError
from .hooks import EarlyStopped

_ID_FILE = "wandb_run_id.txt"


class WandbWriter(EventWriter):
    """Write the scalars and images of the event storage to a Weights & Biases run.

    It must come before TensorboardXWriter in the list of writers, because that one clears the images.
    Training that resumes from a checkpoint continues the same Weights & Biases run, whose id is kept
    in ``OUTPUT_DIR``.

    Args:
        cfg: config of the training; it is logged with the run.
        window_size: losses are medians over this number of iterations.

    Raises:
        GNDetError: if wandb could not start the run.
    """

    def __init__(self, cfg: CfgNode, window_size: int = 20):
        import wandb  # optional; check_config reports it if it is not installed

        folder = Path(cfg.OUTPUT_DIR)
        id_file = folder / _ID_FILE
        resumes = id_file.is_file() and has_checkpoints(folder)
        try:
            self._run = wandb.init(
                project=cfg.TRAIN.WANDB.PROJECT or None,
                name=cfg.TRAIN.WANDB.NAME or folder.resolve().name,
                dir=str(folder),
                id=id_file.read_text().strip() if resumes else None,
                resume="allow" if resumes else None,
                config=yaml.safe_load(cfg.dump()),
            )
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise GNDetError(
                f"Weights & Biases could not start: {reason} Set WANDB_MODE=offline to keep the run on this machine."
            ) from error
        id_file.write_text(self._run.id)
        # A resumed training repeats iterations, but wandb's own step can only increase.
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")
        self._image = wandb.Image
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        """Log the values and pictures that are new since the last call."""
        storage = get_event_storage()
        rows: dict[int, dict] = defaultdict(dict)
        for name, (value, iteration) in storage.latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                rows[iteration][name] = value
        for name, pixels, iteration in storage._vis_data:  # private, but TensorboardXWriter uses it too
            rows[iteration][name] = self._image(np.asarray(pixels).transpose(1, 2, 0))
        for iteration in sorted(rows):
            self._run.log({"iteration": iteration, **rows[iteration]})
        self._last_write = max([self._last_write, *rows])

    def close(self) -> None:
        """End the run; it counts as failed if an exception is being handled, unless training stopped early."""
        error = sys.exc_info()[1]  # detectron2 closes its writers after a failure too
        self._run.finish(exit_code=int(error is not None and not isinstance(error, EarlyStopped)))
