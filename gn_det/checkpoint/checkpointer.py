"""From the name of weights to a model that holds them: found, read, named, checked, and only then loaded."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from ..config.files import parse_config
from ..errors import GNDetError
from ..zoo import index as zoo
from .convert import Converted, convert, place
from .fit import RANDOM, Fit, Problem, compare, find_problem, not_finite, report
from .load import notes_in, read_file, unreadable
from .recipe import OF_ORIGIN, contradiction, recipe_of
from .uri import find_weights

logger = logging.getLogger(__name__)


class ClassNames:
    """What a checkpoint remembers of its classes. A stateful object, as detectron2's checkpointer saves and loads them."""

    def __init__(self, names: list[str], ids: Sequence[int] = ()):
        self.names, self.ids = list(names), list(ids)  # in the model's order; ids of the data set's categories

    def state_dict(self) -> dict:
        return {"names": self.names, "ids": self.ids}

    def load_state_dict(self, state: dict) -> None:
        if self.names and state["names"] != self.names:
            raise GNDetError(
                f"The checkpoint was trained for the classes {state['names']}, but the data set has {self.names}."
            )


class ConfigText:
    """What a checkpoint remembers of its config, so that the file alone is enough to predict with."""

    def __init__(self, cfg: CfgNode):
        self.text = cfg.dump()

    def state_dict(self) -> dict:
        return {"yaml": self.text}

    def load_state_dict(self, state: dict) -> None:
        """A run that is continued keeps its own config."""


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer, which loads weights of any origin, runs nothing in them, and refuses what does not belong.

    Names of other origins become detectron2's (:mod:`gn_det.checkpoint.convert`). A file that holds a ResNet alone is a
    start for the backbone; of any other, each tensor must fit, unless ``MODEL.GN.ACCEPT_WEIGHTS`` says otherwise.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, cfg: CfgNode | None = None, trains: bool = True, **rest
    ):
        """
        Args:
            cfg: the model's config, with which the weights' recipe is compared.
            trains: False where the model is evaluated as it is loaded, and so must be given each of its tensors.
            rest: as detectron2's.
        """
        super().__init__(model, save_dir, **rest)
        self._cfg, self._complete = cfg, not trains
        self._named = ""  # what is being loaded, as the user calls it

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As detectron2's. What a run is continued from is its own model, and complete."""
        self._complete |= resume and self.has_checkpoint()
        return super().resume_or_load(path, resume=resume)

    def get_checkpoint_file(self) -> str:
        """The file that ``last_checkpoint`` names, which lies beside it.

        Raises:
            GNDetError: it names none that is there.
        """
        file = super().get_checkpoint_file()
        if file and (Path(file).parent != Path(self.save_dir) or not os.path.isfile(file)):
            raise GNDetError(
                f"{Path(self.save_dir, 'last_checkpoint')} names no file beside it: write the name of the one to go "
                "on from into it."
            )
        return file

    def load(self, path: str, *args, **kwargs) -> dict[str, Any]:
        """As detectron2's; where something is wrong with the weights, the model stays as it was.

        Raises:
            GNDetError: the weights are not there, cannot be fetched or read, or do not belong to the model.
        """
        self._named = path
        try:
            return super().load(str(find_weights(path)) if path else path, *args, **kwargs)
        except (OSError, AssertionError, RuntimeError) as error:
            raise unreadable(path, error) from error
        finally:
            self._parsed_url_during_load = None  # detectron2 leaves it set after a failure, and then refuses all loads

    def _load_file(self, filename: str) -> dict[str, Any]:
        return read_file(filename)

    def _load_model(self, checkpoint: dict[str, Any]):
        """Check, and load what fits; the rest has been accepted."""
        state = self.model.state_dict()
        read = checkpoint["model"]
        converted = None if any(name in state for name in read) else convert(read)
        weights = place(converted.weights, state) | _pick(read, converted.leftover) if converted else read
        if bad := not_finite(weights):
            raise GNDetError(
                f"The weights {self._named} are spoilt: NaN or infinity in {len(bad)} tensors ({bad[0]}, for one)."
            )
        fit = compare(weights, state)
        if problem := self._problem(fit, weights, checkpoint, converted):
            raise GNDetError(self._refusal(problem))
        self._say(fit, converted.origin if converted else "")
        checkpoint["model"] = {n: v for n, v in weights.items() if n in state and v.shape == state[n].shape}
        return super()._load_model(checkpoint)

    def _log_incompatible_keys(self, incompatible) -> None:
        """Nothing: the report has it."""

    def _problem(self, fit: Fit, weights: dict, checkpoint: dict, converted: Converted | None) -> Problem | None:
        accept = self._cfg.MODEL.GN.ACCEPT_WEIGHTS if self._cfg else ()
        problem = find_problem(fit, weights, self.model, accept, self._complete)
        if problem or not self._cfg or "recipe" in accept:
            return problem
        clause = contradiction(self._recipe(checkpoint, converted), self._cfg)
        return Problem("recipe", clause) if clause else None

    def _recipe(self, checkpoint: dict, converted: Converted | None) -> dict:
        """How the weights were trained, as far as it is known: by their own config or notes, the zoo, or their names."""
        if text := notes_in(checkpoint).get("config"):
            try:
                return recipe_of(parse_config(text, f"The config in {self._named}"))
            except GNDetError as error:  # of another version
                logger.warning(f"How the weights were trained is not compared with the config: {error}")
        if isinstance(noted := checkpoint.get("recipe"), dict):
            return noted
        if entry := zoo.entry_of(self._named):
            return entry.recipe
        origin = converted.origin if converted else ""
        return dict(OF_ORIGIN.get(origin, {}))

    def _refusal(self, problem: Problem) -> str:
        model = self._cfg.MODEL.GN.CONFIG if self._cfg and self._cfg.MODEL.GN.CONFIG else type(self.model).__name__
        way = f"set MODEL.GN.ACCEPT_WEIGHTS \"('{problem.word}',)\""
        ends = {
            "norm": f"; to load it all the same, {way}",
            "recipe": f"; to load it all the same, {way}",
            "classes": f"; to train the last layers of box and mask head anew, {way}",
            "partial": f"; to train what is not there from random weights, {way}",
        }
        end = "" if self._complete and problem.word in RANDOM else ends.get(problem.word, "")
        return f"The weights {self._named} do not belong to the model {model}: {problem.text}{end}."

    def _say(self, fit: Fit, origin: str) -> None:
        names = f"{origin}'s names" if origin else "detectron2's names"
        if fit.whole:
            logger.info(f"Weights {self._named} ({names}): all {len(fit.matched)} tensors of the model are loaded.")
        else:
            logger.info(
                f"Weights {self._named} ({names}); what is missing or has another shape is random:\n{report(fit)}"
            )


def build_checkpointer(
    cfg: CfgNode, model: nn.Module, datasets: Sequence[str], trains: bool = True, stateful: dict[str, Any] | None = None
) -> Checkpointer:
    """A checkpointer for ``OUTPUT_DIR`` that remembers the config, and the classes of the first of the data sets."""
    metadata = MetadataCatalog.get(datasets[0])
    ids = metadata.get("thing_dataset_id_to_contiguous_id", {})
    classes = ClassNames(metadata.get("thing_classes", []), sorted(ids, key=ids.get))
    kept = {"classes": classes, "config": ConfigText(cfg)} | (stateful or {})
    return Checkpointer(model, cfg.OUTPUT_DIR, cfg=cfg, trains=trains, **kept)


def _pick(weights: dict, names: list[str]) -> dict:
    return {name: weights[name] for name in names}
