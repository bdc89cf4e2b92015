"""Keep the identity of the training data in checkpoints, and compare it when a run is resumed."""

import logging
from collections.abc import Sequence
from typing import Any

from detectron2.utils import comm

from ..data.identity import dataset_identities, describe_identity, read_identities

logger = logging.getLogger(__name__)


class DatasetNotes:
    """Datasets as an object that detectron2's checkpointer saves and loads."""

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
