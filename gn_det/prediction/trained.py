"""Load a trained model from a run folder, checkpoint, model zoo name, or config with weights."""

import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.modeling import build_model
from torch import nn

from ..acceleration.inference import apply_model_options
from ..checkpoint import read_notes
from ..checkpoint.checkpointer import Checkpointer
from ..checkpoint.newest import has_checkpoints, newest_good
from ..checkpoint.uri import find_weights
from ..config.checks import check_config
from ..config.defaults import add_gn_det_config
from ..config.files import load_config, parse_config
from ..errors import GNDetError
from ..evaluation.run_folder import read_config
from ..quiet import quiet
from ..zoo import index as zoo

_WEIGHTS_SUFFIXES = (".pth", ".pkl", ".pyth", ".safetensors")


def find_trained(
    model: str | os.PathLike | CfgNode, weights: str | os.PathLike | None = None
) -> tuple[CfgNode, list[str], list[int]]:
    """Find the config, class names, and category ids of a trained model.

    Args:
        model: see :class:`gn_det.Predictor`.
        weights: see :class:`gn_det.Predictor`.

    Returns:
        the config, not frozen, with ``MODEL.WEIGHTS`` and ``NUM_CLASSES`` set; the class names, in the
        order of the model's classes; and their category ids in the dataset that the model was
        trained on, or 0, 1, ... if these are unknown.

    Raises:
        GNDetError: the model, config, or weights do not exist or cannot be read.
    """
    cfg, file = _find_config_and_weights(model, weights)
    file = os.path.expanduser(file)
    file = _checkpoint_in(file) if os.path.isdir(file) else file
    notes = {} if file.startswith(zoo.URI) else read_notes(str(find_weights(file)))
    if cfg is None and "config" not in notes:
        raise GNDetError(
            f"{file} does not contain its config; pass the config too, or pass the OUTPUT_DIR of the run instead."
        )
    cfg = cfg or parse_config(notes["config"], f"The config in {file}")
    cfg.defrost()
    if "GN" not in cfg.MODEL:
        add_gn_det_config(cfg)
    names, ids = _classes(cfg, notes)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(names)
    cfg.MODEL.WEIGHTS = file
    return cfg, names, ids


def _find_config_and_weights(
    model: str | os.PathLike | CfgNode, weights: str | os.PathLike | None
) -> tuple[CfgNode | None, str]:
    """Return the config (None if the weights must provide it) and a file, folder, or URI of weights."""
    name = "" if isinstance(model, CfgNode) else os.path.expanduser(model)
    if weights and not os.path.isdir(name) and ("://" in name or name.endswith(_WEIGHTS_SUFFIXES)):
        raise GNDetError(f"{name} and {weights} are both weights; pass only one of them, or a config and weights.")
    if isinstance(model, CfgNode):
        cfg, file = model.clone(), weights or model.MODEL.WEIGHTS
    elif os.path.isdir(name):
        cfg, file = read_config(name), _checkpoint_in(name, weights)
    elif name.startswith(zoo.URI) or (name in zoo.names() and not weights):
        cfg = zoo.get_detector_config(name.removeprefix(zoo.URI))
        file = cfg.MODEL.WEIGHTS
    elif "://" in name or name.endswith(_WEIGHTS_SUFFIXES):
        cfg, file = None, name
    else:
        cfg, file = _load_config(name), weights
    if not file:
        config = "The CfgNode" if isinstance(model, CfgNode) else model
        raise GNDetError(f"{config} is only a config; pass weights or the OUTPUT_DIR of a run along with it.")
    return cfg, os.fspath(file)


def _load_config(name: str) -> CfgNode:
    try:
        return load_config(name)
    except GNDetError as error:
        if os.path.isfile(name):
            raise
        raise GNDetError(f"{name} is not a folder, a checkpoint, or a config: {error}") from None


def _checkpoint_in(folder: str, weights: str | os.PathLike | None = None) -> str:
    """Return the checkpoint to use from a run folder.

    Args:
        weights: the name of a file in the folder, or another path or URI. Without it, the newest
            good checkpoint is used, as :func:`gn_det.checkpoint.newest.newest_good` chooses it.
    """
    if weights:
        inside = os.path.join(folder, weights)
        return inside if os.path.isfile(inside) else os.fspath(weights)
    if not has_checkpoints(folder):
        raise GNDetError(
            f"{folder} contains no checkpoint, such as model_final.pth: pass another folder or a checkpoint file."
        )
    newest = newest_good(folder, resumes=False)
    newest.log()
    return str(newest.path)


def _classes(cfg: CfgNode, notes: dict) -> tuple[list[str], list[int]]:
    """Return class names and category ids from the checkpoint, or else from the config's datasets.

    Unknown names become "0", "1", ..., and unknown ids become 0, 1, ...
    """
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
    """Build the model of a config and load ``MODEL.WEIGHTS``.

    Missing, unexpected, or differently shaped tensors are refused. Only the mask head is ignored if
    the model predicts no masks.

    Returns:
        the model in evaluation mode, optimized as the config specifies.

    Raises:
        GNDetError: the config is invalid, or the weights cannot be read or do not fit the model.
    """
    cfg.DATASETS.TEST = ()  # the datasets of the training may be unavailable here
    check_config(cfg, has_checkpoint=True, eval_only=True)
    with quiet():
        model = build_model(cfg).eval()
    Checkpointer(model, cfg=cfg, trains=False).load(cfg.MODEL.WEIGHTS, checkpointables=[])
    return apply_model_options(cfg, model)
