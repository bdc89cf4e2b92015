"""Losses, AP, pictures and the config to Weights & Biases, for those who switch ``TRAIN.WANDB.ENABLED`` on."""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from ..errors import GNDetError
from .hooks import EarlyStopped

_ID_FILE = "wandb_run_id.txt"


class WandbWriter(EventWriter):
    """Writes what the event storage has. Before TensorboardXWriter in the list of writers, which clears the pictures.

    A run that goes on from a checkpoint goes on in the same run there, by the id kept in OUTPUT_DIR.

    Raises:
        GNDetError: wandb could not start the run.
    """

    def __init__(self, cfg: CfgNode, window_size: int = 20):
        import wandb  # optional: check_config says where it is missing

        folder = Path(cfg.OUTPUT_DIR)
        id_file = folder / _ID_FILE
        goes_on = id_file.is_file() and (folder / "last_checkpoint").is_file()
        try:
            self._run = wandb.init(
                project=cfg.TRAIN.WANDB.PROJECT or None,
                name=cfg.TRAIN.WANDB.NAME or folder.resolve().name,
                dir=str(folder),
                id=id_file.read_text().strip() if goes_on else None,
                resume="allow" if goes_on else None,
                config=yaml.safe_load(cfg.dump()),
            )
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise GNDetError(
                f"Weights & Biases could not start: {reason} WANDB_MODE=offline keeps the run on this machine."
            ) from error
        id_file.write_text(self._run.id)
        # A resumed run repeats iterations, and wandb's own steps only go up.
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")
        self._image = wandb.Image
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        storage = get_event_storage()
        rows: dict[int, dict] = defaultdict(dict)
        for name, (value, iteration) in storage.latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                rows[iteration][name] = value
        for name, pixels, iteration in storage._vis_data:  # as TensorboardXWriter takes them
            rows[iteration][name] = self._image(np.asarray(pixels).transpose(1, 2, 0))
        for iteration in sorted(rows):
            self._run.log({"iteration": iteration, **rows[iteration]})
        self._last_write = max([self._last_write, *rows])

    def close(self) -> None:
        error = sys.exc_info()[1]  # detectron2 closes its writers after a failure too
        self._run.finish(exit_code=int(error is not None and not isinstance(error, EarlyStopped)))
