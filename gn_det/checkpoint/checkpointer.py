"""Load weights of any origin with detectron2's checkpointer, and refuse weights that do not fit."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor, nn

from ..config.files import load_config, parse_config
from ..errors import GNDetError
from ..zoo import index as zoo
from .convert import convert, place, plain_names
from .dataset_notes import DatasetNotes
from .fit import LEAVES_RANDOM, Fit, Problem, compare, find_problem, not_finite, quantized, report
from .load import notes_in, read_error, read_file
from .recipe import RECIPES_BY_ORIGIN, contradiction, decoding_contradiction, recipe_of
from .uri import find_weights

logger = logging.getLogger(__name__)


class ClassNames:
    """Class names and category ids, as an object that detectron2's checkpointer saves and loads."""

    def __init__(self, names: list[str], ids: Sequence[int] = ()):
        """
        Args:
            names: in the order of the model's classes.
            ids: of the categories in the dataset, in the same order.
        """
        self.names, self.ids = list(names), list(ids)

    def state_dict(self) -> dict[str, Any]:
        """Return {"names": class names, "ids": category ids}."""
        return {"names": self.names, "ids": self.ids}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that the checkpoint has the same class names.

        Raises:
            GNDetError: it has others.
        """
        if self.names and state["names"] != self.names:
            raise GNDetError(
                f"The checkpoint was trained for the classes {state['names']}, but the dataset has {self.names}; use a "
                "dataset with the same classes in the same order."
            )


class ConfigText:
    """Let detectron2's checkpointer save the config, so that a checkpoint alone defines its model."""

    def __init__(self, cfg: CfgNode):
        self.text = cfg.dump()

    def state_dict(self) -> dict[str, Any]:
        """Return {"yaml": the config as YAML}."""
        return {"yaml": self.text}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: a resumed run keeps its own config."""


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer, extended to load weights of other projects and refuse those that do not fit.

    No code in a weights file is run. Names of other projects are converted by
    :mod:`gn_det.checkpoint.convert`. Weights of a ResNet alone may initialize the backbone of a
    training; otherwise every tensor must fit, unless ``MODEL.GN.ACCEPT_WEIGHTS`` accepts the
    difference.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, cfg: CfgNode | None = None, trains: bool = True, **kwargs: Any
    ):
        """
        Args:
            cfg: the model's config, with which the recipe of the weights is compared.
            trains: False if the model is not trained after loading; then every tensor of the model
                must be loaded.
            kwargs: other arguments of detectron2's checkpointer.
        """
        super().__init__(model, save_dir, **kwargs)
        self._cfg, self._complete = cfg, not trains
        self._weights_name = ""  # of the weights that are being loaded, as the user wrote it

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Same as detectron2's method; in addition, a resumed run must load every tensor of the model."""
        self._complete |= resume and self.has_checkpoint()
        loaded: dict[str, Any] = super().resume_or_load(path, resume=resume)
        return loaded

    @property
    def loaded_from(self) -> str:
        """Path, URL or name of the weights that were loaded last; "" if none were."""
        return self._weights_name

    def get_checkpoint_file(self) -> str:
        """Return the path of the checkpoint that ``last_checkpoint`` names; "" if there is no such file.

        Raises:
            GNDetError: the checkpoint does not exist or is in another folder.
        """
        file: str = super().get_checkpoint_file()
        if file and (Path(file).parent != Path(self.save_dir) or not os.path.isfile(file)):
            raise GNDetError(
                f"{Path(self.save_dir, 'last_checkpoint')} does not name a file in its folder: write into it the "
                "name of the checkpoint to resume from."
            )
        return file

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
    return Checkpointer(model, cfg.OUTPUT_DIR, cfg=cfg, trains=trains, **parts)
