"""Load weights of any origin with detectron2's checkpointer, and refuse weights that do not fit."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from torch import Tensor, nn

from ..config.files import load_config, parse_config
from ..errors import GNDetError
from ..zoo import index as zoo
from .convert import convert, place, plain_names
from .finite import not_finite
from .fit import LEAVES_RANDOM, Fit, Problem, compare, find_problem, quantized, report
from .load import notes_in, read_error, read_file
from .newest import has_checkpoints, newest_good, read_last
from .parts import ClassNames, ConfigText, DatasetNotes
from .recipe import RECIPES_BY_ORIGIN, contradiction, decoding_contradiction, recipe_of
from .saving import remove_leftovers, remove_old, save_checkpoint, save_last
from .uri import find_weights

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer, extended to load weights of other projects and refuse those that do not fit.

    No code in a weights file is run. Names of other projects are converted by
    :mod:`gn_det.checkpoint.convert`. Weights of a ResNet alone may initialize the backbone of a
    training; otherwise every tensor must fit, unless ``MODEL.GN.ACCEPT_WEIGHTS`` accepts the
    difference.

    Checkpoints are saved as :mod:`gn_det.checkpoint.saving` describes, and a run is resumed from the
    checkpoint that :mod:`gn_det.checkpoint.newest` chooses.

    Attributes:
        resumed_from: name of the checkpoint that :meth:`resume_or_load` has chosen; "" before, and if
            it chose none.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        cfg: CfgNode | None = None,
        trains: bool = True,
        keep: int = 0,
        **kwargs: Any,
    ):
        """
        Args:
            cfg: the model's config, with which the recipe of the weights is compared.
            trains: False if the model is not trained after loading; then every tensor of the model
                must be loaded, and ``save_dir`` is not changed.
            keep: number of periodic checkpoints (``model_0004999.pth``) that are kept; 0 keeps all.
            kwargs: other arguments of detectron2's checkpointer.
        """
        super().__init__(model, save_dir, **kwargs)
        self._cfg, self._complete, self._trains, self._keep = cfg, not trains, trains, keep
        self._resumes = False
        self.resumed_from = ""
        self._weights_name = ""  # of the weights that are being loaded, as the user wrote it

    @property
    def loaded_from(self) -> str:
        """Path, URL or name of the weights that were loaded last; "" if none were."""
        return self._weights_name

    def save(self, name: str, **kwargs: Any) -> None:
        """Same as detectron2's method, but a crash at any moment leaves the older checkpoints usable.

        Raises:
            GNDetError: a tensor contains NaN or infinity, or the file cannot be written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        parts = {key: part.state_dict() for key, part in self.checkpointables.items()}
        self.write(f"{name}.pth", {"model": self.model.state_dict(), **parts, **kwargs})
        self.tag_last_checkpoint(f"{name}.pth")
        remove_old(self.save_dir, self._keep)

    def write(self, file_name: str, data: Mapping[str, Any]) -> None:
        """Write a checkpoint with the given content, without making it the one to resume from.

        Raises:
            GNDetError: as for :func:`gn_det.checkpoint.saving.save_checkpoint`.
        """
        path = Path(self.save_dir, file_name)
        logger.info(f"Saving checkpoint to {path}")
        save_checkpoint(path, data)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write a file name to ``last_checkpoint`` atomically."""
        save_last(self.save_dir, last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Return whether ``save_dir`` has checkpoints to resume from, good or bad."""
        return bool(self.save_dir) and has_checkpoints(self.save_dir)

    def get_checkpoint_file(self) -> str:
        """Return the path of the newest good checkpoint in ``save_dir``; "" if there is no checkpoint.

        Raises:
            GNDetError: there are checkpoints, but no good one.
        """
        return str(newest_good(self.save_dir, resumes=True).path) if self.has_checkpoint() else ""

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Same as detectron2's method, but a run is resumed from its newest good checkpoint.

        A resumed run must load every tensor of the model. In a training, ``last_checkpoint`` is
        mended if it names another file, and the temporary files of killed saves are removed.

        Raises:
            GNDetError: there are checkpoints, but no good one; or as for :meth:`load`.
        """
        newest = None
        if resume:
            newest = _in_main_process(
                lambda: newest_good(self.save_dir, resumes=True) if self.has_checkpoint() else None
            )
        if not newest:
            return self.load(path, checkpointables=[])
        newest.log()
        self._complete = self._resumes = True
        loaded = self.load(str(newest.path))
        self.resumed_from = newest.path.name
        if self._trains and self.save_to_disk:
            remove_leftovers(self.save_dir)
            if read_last(self.save_dir)[0] != self.resumed_from:
                self.tag_last_checkpoint(self.resumed_from)
        return loaded

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Same as detectron2's method; in addition, weights that do not fit are refused.

        The model is unchanged after an error.

        Raises:
            GNDetError: the weights do not exist, cannot be downloaded or read, or do not fit the
                model.
        """
        self._weights_name = path
        try:
            loaded: dict[str, Any] = super().load(str(find_weights(path)) if path else path, *args, **kwargs)
            return loaded
        except (OSError, AssertionError, RuntimeError) as error:
            raise read_error(path, error) from error
        finally:
            # detectron2 does not reset this after an error, and the next load would fail.
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        return read_file(filename)

    def _load_model(self, checkpoint: dict[str, Any]) -> object:
        """Check the weights, and load all tensors that the model has with the same shape."""
        if self._resumes and "trainer" in self.checkpointables and "trainer" not in checkpoint:
            raise GNDetError(
                f"{self._weights_name} has weights and no state of a training: to start from its weights, set "
                "MODEL.WEIGHTS to it and use another OUTPUT_DIR."
            )
        state = self.model.state_dict()
        weights, origin = self._without_prefixes(checkpoint["model"], state), ""
        if not any(name in state for name in weights):
            converted = convert(weights)
            leftover = {name: weights[name] for name in converted.leftover}
            weights, origin = place(converted.weights, state) | leftover, converted.origin
        if bad := quantized(weights, state):
            kind = str(weights[bad[0]].dtype).removeprefix("torch.")
            raise GNDetError(
                f"The weights {self._weights_name} have {len(bad)} tensors of type {kind} (for example {bad[0]}), whose "
                "scales are not known; use weights of a floating point type."
            )
        if bad := not_finite(weights):
            raise GNDetError(
                f"The weights {self._weights_name} are corrupt: {len(bad)} tensors contain NaN or infinity (for example "
                f"{bad[0]}); use another checkpoint."
            )
        fit = compare(weights, state)
        if problem := self._problem(fit, weights, checkpoint, origin):
            raise GNDetError(self._refusal(problem))
        self._log_fit(fit, origin)
        checkpoint["model"] = {n: v for n, v in weights.items() if n in state and v.shape == state[n].shape}
        return super()._load_model(checkpoint)

    def _without_prefixes(self, weights: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights without the prefixes of wrapped models, unless the model has such names itself."""
        names = plain_names(weights)
        if not weights or weights.keys() == names.keys() or plain_names(state).keys() != state.keys():
            return weights
        plain, name = next((plain, name) for plain, name in names.items() if plain != name)
        logger.info(f"The names in {self._weights_name} have prefixes of wrapped models: {name} is read as {plain}.")
        return {plain: weights[name] for plain, name in names.items()}

    def _log_incompatible_keys(self, incompatible: object) -> None:
        """Do nothing: :meth:`_log_fit` reports missing and unexpected tensors."""

    def _problem(self, fit: Fit, weights: dict[str, Tensor], checkpoint: dict[str, Any], origin: str) -> Problem | None:
        accept = self._cfg.MODEL.GN.ACCEPT_WEIGHTS if self._cfg else ()
        problem = find_problem(fit, weights, self.model, accept, self._complete)
        if problem or not self._cfg or "recipe" in accept:
            return problem
        clause = self._contradiction(checkpoint, origin, self._cfg)
        return Problem("recipe", clause) if clause else None

    def _contradiction(self, checkpoint: dict[str, Any], origin: str, cfg: CfgNode) -> str | None:
        """Return how what is known of the training of the weights contradicts the config; None if it agrees.

        The sources are, in this order, the config and the recipe in the checkpoint, the model zoo,
        and the tensor names.
        """
        if trained := self._config_of(checkpoint):
            return contradiction(recipe_of(trained), cfg) or decoding_contradiction(trained, cfg)
        if isinstance(recipe := checkpoint.get("recipe"), dict):
            return contradiction(recipe, cfg)
        if entry := zoo.entry_of(self._weights_name):
            clause = contradiction(entry.recipe, cfg)
            return clause or (
                decoding_contradiction(load_config(entry.config), cfg) if entry.kind == "detector" else None
            )
        return contradiction(RECIPES_BY_ORIGIN.get(origin, {}), cfg)

    def _config_of(self, checkpoint: dict[str, Any]) -> CfgNode | None:
        """Return the config with which a checkpoint was trained; None if it has none that can be read."""
        if text := notes_in(checkpoint).get("config"):
            try:
                return parse_config(text, f"The config in {self._weights_name}")
            except GNDetError as error:  # the config is from another version
                logger.warning(f"The recipe of the weights cannot be compared with the config: {error}")
        return None

    def _refusal(self, problem: Problem) -> str:
        model = self._cfg.MODEL.GN.CONFIG if self._cfg and self._cfg.MODEL.GN.CONFIG else type(self.model).__name__
        setting = f"set MODEL.GN.ACCEPT_WEIGHTS \"('{problem.word}',)\""
        hints = {
            "norm": f"; to load them anyway, {setting}",
            "recipe": f"; to load them anyway, {setting}",
            "classes": f"; to train the last layers of the box and mask heads from random weights, {setting}",
            "partial": f"; to train the missing tensors from random weights, {setting}",
        }
        hint = "" if self._complete and problem.word in LEAVES_RANDOM else hints.get(problem.word, "")
        return f"The weights {self._weights_name} do not fit the model {model}: {problem.text}{hint}."

    def _log_fit(self, fit: Fit, origin: str) -> None:
        what = f"the weights {self._weights_name} (tensor names of {origin or 'detectron2'})"
        if fit.exact:
            logger.info(f"Loaded {what}: all {len(fit.matched)} tensors of the model.")
        else:
            logger.info(f"Loaded {what}; tensors that are missing or have another shape stay random:\n{report(fit)}")


def _in_main_process(function: Callable[[], _Result]) -> _Result:
    """Call a function in the main process, and return its result, or raise its GNDetError, in all processes."""
    outcome: _Result | GNDetError | None = None
    if comm.is_main_process():
        try:
            outcome = function()
        except GNDetError as error:
            outcome = error
    result: _Result | GNDetError = comm.all_gather(outcome)[0]
    if isinstance(result, GNDetError):
        raise result
    return result


def build_checkpointer(
    cfg: CfgNode, model: nn.Module, datasets: Sequence[str], trains: bool = True, stateful: dict[str, Any] | None = None
) -> Checkpointer:
    """Return a checkpointer for ``OUTPUT_DIR`` whose checkpoints contain config, class names and data digests.

    Args:
        datasets: names of registered datasets; the class names are those of the first.
        trains: as :class:`Checkpointer` takes it.
        stateful: {name: object with ``state_dict`` and ``load_state_dict``}, further parts of the
            checkpoints.
    """
    metadata = MetadataCatalog.get(datasets[0])
    ids = metadata.get("thing_dataset_id_to_contiguous_id", {})
    classes = ClassNames(metadata.get("thing_classes", []), sorted(ids, key=ids.get))
    parts = {"classes": classes, "config": ConfigText(cfg)} | (stateful or {})
    if trains:
        parts["datasets"] = DatasetNotes(datasets)
    return Checkpointer(model, cfg.OUTPUT_DIR, cfg=cfg, trains=trains, keep=cfg.TRAIN.KEEP_CHECKPOINTS, **parts)
