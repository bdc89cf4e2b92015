"""Load published GN models by name, like ``detectron2.model_zoo``."""

from detectron2.modeling import build_model
from torch import nn

from .acceleration.device import choose_device
from .prediction.trained import load_trained
from .zoo.index import (  # noqa: F401
    URI,
    Entry,
    entry_of,
    get_config,
    get_detector_config,
    get_entry,
    get_weights,
    names,
    published,
    resolve,
)

list = names


def get(name: str, trained: bool = True) -> nn.Module:
    """Build the model of an entry in evaluation mode, on a GPU if there is one, else on the CPU.

    Args:
        name: the name of the entry.
        trained: whether to load the published weights. Otherwise the model is initialized at random.

    Raises:
        GNDetError: no entry has this name, or, if ``trained``, its weights cannot be downloaded, do not
            fit the model, or are those of a backbone only.
    """
    cfg = get_detector_config(name) if trained else get_config(name)
    cfg.MODEL.DEVICE = choose_device(None)
    return load_trained(cfg) if trained else build_model(cfg).eval()
