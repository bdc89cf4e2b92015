"""What a resumed training compares with its checkpoint, and where it begins in the order of the images."""

import logging
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..checkpoint.checkpointer import Checkpointer
from ..config.defaults import KEYS
from ..config.files import parse_config
from ..errors import GNDetError
from ..evaluation.records import flatten
from .loader import TrainLoader

logger = logging.getLogger(__name__)

# Keys that do not change what is trained from a checkpoint.
_WITHOUT_EFFECT = {"OUTPUT_DIR", "MODEL.WEIGHTS", "DATALOADER.NUM_WORKERS", "VIS_PERIOD"} | {
    key.name for key in KEYS if key.recipe == "never"
}


class DataOrder:
    """Where a run is in the order of its images, as a part of its checkpoints.

    Batch n of the run, from ``first`` on, is batch n - ``first`` after ``origin`` images. The number of
    iterations is in the checkpoint already, so the values change only if a run is resumed with another
    number of processes or images per batch.

    Args:
        loader: the training data; another iterable cannot begin in the middle of its order.
        seed: of the run.
    """

    def __init__(self, loader: object, seed: int):
        self._loader = loader if isinstance(loader, TrainLoader) else None
        self._origin, self._first = 0, 0
        self._saved: dict[str, int] = {}
        self.seed = seed
        self._layout = {"processes": comm.get_world_size()}
        if self._loader:
            self._layout["images_per_process"] = self._loader.batch_size
            self._layout["grouped"] = int(self._loader.grouped)
            self._layout["training_images"] = self._loader.images

    def state_dict(self) -> dict[str, int]:
        """Return the seed, where the order began, and what the order depends on."""
        return {"seed": self.seed, "origin": self._origin, "first": self._first, **self._layout}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Keep the state of the checkpoint for :meth:`resume`."""
        self._saved = state

    def resume(self, checkpointer: Checkpointer, cfg: CfgNode, iteration: int) -> None:
        """Let the loader begin with the batch of an iteration, and log what differs from the checkpoint.

        Args:
            checkpointer: has loaded the checkpoint.
            cfg: config of the resumed run. If it has a seed, it replaces that of the checkpoint.
            iteration: the first iteration of the resumed run.
        """
        file = checkpointer.resumed_from
        if changes := describe_changes(checkpointer.checkpointables["config"].loaded, cfg, self.changes()):
            logger.warning(f"This run differs from its checkpoint {file}: {changes}.")
        logger.info(f"The training resumes from {file}, after {iteration} iterations.")
        if iteration >= cfg.SOLVER.MAX_ITER:
            logger.warning(
                f"{file} has been trained for {iteration} of SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER} iterations: nothing "
                "is left to train."
            )
        self._seek(iteration, seed_is_given=cfg.SEED >= 0)

    def _seek(self, iteration: int, seed_is_given: bool) -> None:
        """Set the position of the loader.

        With another number of processes or images per batch, the run goes on behind the images that
        were read. Images that grouping by aspect ratio held back are left out then.
        """
        saved = self._saved
        if saved:
            self._origin, self._first = saved["origin"], saved["first"]
            self.seed = self.seed if seed_is_given else saved["seed"]
        if any(name != "training_images" for name, *_ in self.changes()):
            self._origin += (iteration - self._first) * saved["processes"] * saved.get("images_per_process", 0)
            self._first = iteration
        if self._loader:
            self._loader.seek(self.seed, self._origin, iteration - self._first)

    def changes(self) -> list[tuple[str, int, int]]:
        """Return the name, the old and the new value of what differs from the checkpoint."""
        pairs = [(name, self._saved.get(name, new), new) for name, new in self._layout.items()]
        return [pair for pair in pairs if pair[1] != pair[2]]


def with_max_iter(cfg: CfgNode, iterations: int) -> CfgNode:
    """Return a copy of a config with another ``SOLVER.MAX_ITER``."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.MAX_ITER = iterations
    cfg.freeze()
    return cfg


def describe_changes(saved_config: str, cfg: CfgNode, order: Sequence[tuple[str, int, int]] = ()) -> str:
    """Return what differs between a run and the checkpoint that it is resumed from.

    Args:
        saved_config: the config in the checkpoint, as YAML; "" if it has none.
        cfg: config of the resumed run.
        order: as :meth:`DataOrder.changes` returns it.

    Returns:
        "KEY: old -> new" for each config key and each part of ``order``, separated by ", ". Keys that do
        not change what is trained are left out. "" if nothing differs.
    """
    pairs: list[tuple[str, object, object]] = []
    if saved_config:
        try:
            saved, new = (parse_config(text, "The config in the checkpoint") for text in (saved_config, cfg.dump()))
            before, now = flatten(saved), flatten(new)
            names = sorted(before.keys() | now.keys())
            pairs += [(n, before.get(n), now.get(n)) for n in names if before.get(n) != now.get(n)]
        except GNDetError as error:  # the config is from another version
            return f"the config cannot be compared: {error}"
    pairs += [(name.replace("_", " "), old, new) for name, old, new in order if name != "grouped"]
    return ", ".join(f"{name}: {old} -> {new}" for name, old, new in pairs if name not in _WITHOUT_EFFECT)
