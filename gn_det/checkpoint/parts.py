"""Parts of a checkpoint besides the tensors, as objects that detectron2's checkpointer saves and loads."""

import logging
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..data.identity import dataset_identities, describe_identity, read_identities
from ..errors import GNDetError

logger = logging.getLogger(__name__)


class ClassNames:
    """Class names and category ids."""

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

    def warn_about_others(self, saved: object) -> None:
        """Log a warning if weights, from which a training starts, were trained for other classes.

        Args:
            saved: what :meth:`state_dict` returned when the weights were saved; None if it is not known.
        """
        saved_names = saved.get("names") if isinstance(saved, dict) else None
        if saved_names and saved_names != self.names:
            logger.warning(
                f"The weights were trained for the classes {saved_names}; this run trains the classes {self.names}."
            )


class ConfigText:
    """The config, so that a checkpoint alone defines its model.

    Attributes:
        text: the config of this run, as YAML.
        loaded: the config of the checkpoint that was loaded, as YAML; "" if there is none.
    """

    def __init__(self, cfg: CfgNode):
        self.text, self.loaded = cfg.dump(), ""

    def state_dict(self) -> dict[str, Any]:
        """Return {"yaml": the config as YAML}."""
        return {"yaml": self.text}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the text for comparisons. A resumed run has its own config."""
        self.loaded = state.get("yaml", "")


class DatasetNotes:
    """The identity of the training data; compared when a run is resumed."""

    def __init__(self, names: Sequence[str]):
        """
        Args:
            names: of registered datasets.
        """
        self.names = list(names)

    def state_dict(self) -> dict[str, Any]:
        """Return the identity of each dataset, see :func:`gn_det.data.identity.dataset_identity`."""
        return dataset_identities(self.names)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Warn if the checkpoint was trained on other data."""
        if not comm.is_main_process():
            return
        saved, current = read_identities(state), dataset_identities(self.names)
        digests = [sorted(data["digest"] for data in found.values() if data) for found in (saved, current)]
        if all(digests) and digests[0] != digests[1]:
            then, now = (", ".join(describe_identity(*item) for item in found.items()) for found in (saved, current))
            logger.warning(f"The checkpoint was trained on {then}; this run goes on with other data: {now}.")
