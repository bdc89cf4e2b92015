"""Published GN models by name, as ``detectron2.model_zoo`` has detectron2's own."""

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
    """The model of an entry on a GPU if there is one, in evaluation mode; with random weights if not ``trained``.

    Raises:
        GNDetError: there is none of that name, its weights cannot be had or do not fit, or they are a backbone's.
    """
    cfg = get_detector_config(name) if trained else get_config(name)
    cfg.MODEL.DEVICE = choose_device(None)
    return load_trained(cfg) if trained else build_model(cfg).eval()
