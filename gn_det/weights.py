"""From the name of weights to a model that holds them: found, read, named, checked, and only then loaded."""

import logging
import os
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import nn

from . import model_zoo
from .checkpoint.convert import Converted, convert, place
from .checkpoint.fetch import fetch
from .checkpoint.fit import RANDOM, Fit, Problem, compare, find_problem, not_finite, report
from .checkpoint.load import notes_in, read_file, unreadable
from .config import parse_config
from .errors import GNDetError
from .recipe import OF_ORIGIN, contradiction, recipe_of

logger = logging.getLogger(__name__)


def find_weights(name: str | os.PathLike) -> Path:
    """The file of ``MODEL.WEIGHTS``, fetched where it is not on this machine yet.

    Args:
        name: a path, a URL, ``gn_det://NAME`` of the model zoo, or one of detectron2's ``catalog://`` and ``detectron2://``.

    Raises:
        GNDetError: it is not there, cannot be fetched, or is not what was published under that name.
    """
    name = os.fspath(name).partition("?")[0]  # the rest is for detectron2's checkpointer
    if name.startswith(model_zoo.URI):
        return model_zoo.get_weights(name.removeprefix(model_zoo.URI))
    url = model_zoo.resolve(name)
    if url.startswith("catalog://"):
        raise GNDetError(f"The weights {name} could not be read: detectron2's catalog has none of that name.")
    if url.startswith(("https://", "http://")):
        entry = model_zoo.entry_of(url)
        return model_zoo.get_weights(entry.name) if entry and url in entry.urls else fetch(url)
    try:
        path = Path(PathManager.get_local_path(url) if "://" in url else url).expanduser()
    except Exception as error:  # of whatever handler it is
        raise unreadable(name, error) from error
    if not path.is_file():
        raise _not_there(name)
    return path


def check_name(name: str) -> None:
    """Raise GNDetError where weights of this name cannot be had, as far as it is seen without reading or fetching them."""
    name = name.partition("?")[0]
    if name.startswith(model_zoo.URI):
        model_zoo.get_entry(name.removeprefix(model_zoo.URI))
    elif "://" not in name and not Path(name).expanduser().is_file():
        raise _not_there(name)


def _not_there(name: str) -> GNDetError:
    hint = f"; did you mean {model_zoo.URI}{name}?" if name in model_zoo.list() else "."
    return GNDetError(f"The weights {name} could not be read: there is no such file{hint}")


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
        if entry := model_zoo.entry_of(self._named):
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


def _pick(weights: dict, names: list[str]) -> dict:
    return {name: weights[name] for name in names}
