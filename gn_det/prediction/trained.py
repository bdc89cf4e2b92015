"""From what a run left, or a config and weights, to a model that is used."""

import os
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.modeling import build_model
from torch import nn

from ..acceleration.inference import speed_up
from ..checkpoint import read_notes
from ..checkpoint.checkpointer import Checkpointer
from ..checkpoint.uri import find_weights
from ..config.checks import check_config
from ..config.defaults import add_gn_det_config
from ..config.files import load_config, parse_config
from ..errors import GNDetError
from ..evaluation.run_folder import read_config
from ..quiet import quiet
from ..zoo import index as zoo

_WEIGHTS = (".pth", ".pkl", ".pyth", ".safetensors")


def find_trained(
    model: str | os.PathLike | CfgNode, weights: str | os.PathLike | None = None
) -> tuple[CfgNode, list[str], list[int]]:
    """The config of a trained model with its ``MODEL.WEIGHTS``, the names of its classes, and their category ids.

    Args:
        model, weights: as :class:`gn_det.Predictor` takes them.

    Returns:
        the config, unfrozen; the names in the order of the model's classes; their ids in the data set that it was trained
        on, where they are known, else 0, 1, ...

    Raises:
        GNDetError: something is not there or cannot be read.
    """
    cfg, file = _find(model, weights)
    file = os.path.expanduser(file)
    file = _checkpoint_in(file) if os.path.isdir(file) else file
    notes = {} if file.startswith(zoo.URI) else read_notes(str(find_weights(file)))
    if cfg is None and "config" not in notes:
        raise GNDetError(
            f"{file} does not remember its config: name its config too, or in its place the OUTPUT_DIR of its run."
        )
    cfg = cfg or parse_config(notes["config"], f"The config in {file}")
    cfg.defrost()
    if "GN" not in cfg.MODEL:
        add_gn_det_config(cfg)
    names, ids = _classes(cfg, notes)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(names)
    cfg.MODEL.WEIGHTS = file
    return cfg, names, ids


def _find(model: str | os.PathLike | CfgNode, weights: str | os.PathLike | None) -> tuple[CfgNode | None, str]:
    """The config, or None where the weights hold it, and the weights."""
    name = "" if isinstance(model, CfgNode) else os.path.expanduser(model)
    if weights and not os.path.isdir(name) and ("://" in name or name.endswith(_WEIGHTS)):
        raise GNDetError(f"{name} and {weights} are both weights: name one, or a config and weights.")
    if isinstance(model, CfgNode):
        cfg, file = model.clone(), weights or model.MODEL.WEIGHTS
    elif os.path.isdir(name):
        cfg, file = read_config(name), _checkpoint_in(name, weights)
    elif name.startswith(zoo.URI) or (name in zoo.names() and not weights):
        cfg = zoo.get_detector_config(name.removeprefix(zoo.URI))
        file = cfg.MODEL.WEIGHTS
    elif "://" in name or name.endswith(_WEIGHTS):
        cfg, file = None, name
    else:
        cfg, file = _load_config(name), weights
    if not file:
        what = "this CfgNode" if isinstance(model, CfgNode) else model
        raise GNDetError(f"A config alone predicts nothing: with {what}, name the weights or the OUTPUT_DIR of a run.")
    return cfg, os.fspath(file)


def _load_config(name: str) -> CfgNode:
    try:
        return load_config(name)
    except GNDetError as error:
        if os.path.isfile(name):
            raise
        raise GNDetError(f"{name} is neither a folder, a checkpoint nor a config: {error}") from None


def _checkpoint_in(folder: str, weights: str | os.PathLike | None = None) -> str:
    """``weights`` in the folder if they are there, else as they are; without them the final ones, or the last."""
    if weights:
        inside = os.path.join(folder, weights)
        return inside if os.path.isfile(inside) else os.fspath(weights)
    last = Path(folder, "last_checkpoint")
    names = ["model_final.pth"] + ([Path(last.read_text().strip()).name] if last.is_file() else [])
    found = [file for name in names if (file := os.path.join(folder, name)) and os.path.isfile(file)]
    if not found:
        raise GNDetError(f"{folder} holds no checkpoint yet: neither model_final.pth nor what last_checkpoint names.")
    return found[0]


def _classes(cfg: CfgNode, notes: dict) -> tuple[list[str], list[int]]:
    """Names and category ids: the checkpoint's, else those of the config's data set if it is known here."""
    sets = [MetadataCatalog.get(name) for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN) if name in MetadataCatalog]
    known = next((metadata for metadata in sets if metadata.get("thing_classes")), Metadata(thing_classes=[]))
    names = notes.get("names", [])
    if not names:
        number = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        names = (
            list(known.thing_classes) if len(known.thing_classes) == number else [str(index) for index in range(number)]
        )
    ids = notes.get("ids", [])
    if not ids and names == known.thing_classes:
        index_of = known.get("thing_dataset_id_to_contiguous_id", {})
        ids = sorted(index_of, key=index_of.__getitem__)
    return names, ids if len(ids) == len(names) else list(range(len(names)))


def load_trained(cfg: CfgNode) -> nn.Module:
    """The model of a config, with its weights, all of them and no others, in evaluation mode.

    Raises:
        GNDetError: the config cannot work, or the weights cannot be read or are another model's.
    """
    cfg.DATASETS.TEST = ()  # what it was trained on need not be here
    check_config(cfg, has_checkpoint=True, eval_only=True)
    if cfg.INPUT.FORMAT not in ("BGR", "RGB"):
        raise GNDetError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}: the predictor knows BGR and RGB.")
    with quiet():
        model = build_model(cfg).eval()
    Checkpointer(model, cfg=cfg, trains=False).load(cfg.MODEL.WEIGHTS, checkpointables=[])
    return speed_up(cfg, model)
