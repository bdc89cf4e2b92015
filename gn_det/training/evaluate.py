"""Evaluate models on the test sets of a config, with guards against signals and stalled processes."""

import logging
import signal
from collections import OrderedDict
from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.modeling import build_model as detectron2_build_model
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from ..acceleration.inference import apply_model_options
from ..checkpoint.checkpointer import build_checkpointer
from ..checkpoint.uri import find_weights
from ..evaluation.evaluator import evaluate
from ..evaluation.records import Weights, weights_of
from ..modeling.norm import is_norm
from .guards.run import guarded, guarded_evaluation
from .guards.signals import Interrupted, Stopped
from .loader import build_test_loader
from .overview import describe_norms

logger = logging.getLogger(__name__)


def evaluate_datasets(
    cfg: CfgNode,
    model: nn.Module,
    build_loader: Callable = build_test_loader,
    weights: Weights | None = None,
) -> dict:
    """Evaluate a model on each dataset of ``DATASETS.TEST``, write records and log tables.

    Args:
        cfg: config with the datasets.
        model: model in training or evaluation mode.
        build_loader: returns the loader for the config and the name of a dataset.
        weights: the weights of the model, for the records, if it was not trained by this run.

    Returns:
        A dict with these keys; for several datasets, a dict from their names to such dicts:

        - "bbox": dict from the name of a metric of boxes ("AP", "AP50", ...) to its value in percent.
        - "segm": same for masks, if the model has them.

        In processes other than the main process, the dict for a dataset is empty.

    Raises:
        Interrupted: a process has received a signal.
    """
    results = OrderedDict()
    for name in cfg.DATASETS.TEST:
        loader = build_loader(cfg, name)
        with guarded_evaluation() as callbacks:
            results[name] = evaluate(cfg, model, name, loader, trained_iterations(cfg), weights, callbacks)
    return results.popitem()[1] if len(results) == 1 else results


def evaluate_only(
    cfg: CfgNode, resume: bool = False, accept: Callable[[Weights | None], CfgNode] | None = None
) -> dict:
    """Evaluate ``MODEL.WEIGHTS``, or with ``resume`` the last checkpoint in ``OUTPUT_DIR``.

    Args:
        cfg: checked config.
        resume: evaluate the newest good checkpoint in ``OUTPUT_DIR``, if there is one.
        accept: called in each process when the weights are loaded. Takes the weights, or None in processes
            other than the main process; returns the config of the evaluation, whose ``OUTPUT_DIR`` may differ.

    Returns:
        The results, see :func:`evaluate_datasets`.

    Raises:
        GNDetError: if the weights cannot be read, do not fit the model, or were trained for other classes.
        Stopped: a process has received a signal.
    """
    with guarded(cfg):
        try:
            return _evaluate_only(cfg, resume, accept)
        except Interrupted as error:
            logger.warning(f"{signal.Signals(error.number).name} has stopped the evaluation, which has no result.")
            raise Stopped(error.number) from None


def _evaluate_only(cfg: CfgNode, resume: bool, accept: Callable[[Weights | None], CfgNode] | None) -> dict:
    model = apply_model_options(cfg, _build_and_log_model(cfg))
    checkpointer = build_checkpointer(cfg, model, cfg.DATASETS.TEST, trains=False)
    rest = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    if "classes" in rest:
        checkpointer.checkpointables["classes"].load_state_dict(rest["classes"])
    weights, loaded = None, checkpointer.loaded_from
    if loaded and comm.is_main_process():
        weights = weights_of(loaded, find_weights(loaded), rest)
    return evaluate_datasets(accept(weights) if accept else cfg, model, weights=weights)


def _build_and_log_model(cfg: CfgNode) -> nn.Module:
    """Build the model of a config, and log its number of parameters and its norms."""
    model = detectron2_build_model(cfg)
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info(
        f"Model: {total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M of them trained; norms: {_norms(model)}."
    )
    return model


def _norms(model: nn.Module) -> str:
    """Return the norms per part, e.g. ``backbone 69 GN of 32 groups, roi_heads 8 GN of 32 groups``."""
    parts = {name: [m for m in part.modules() if is_norm(m)] for name, part in model.named_children()}
    return ", ".join(f"{name} {describe_norms(norms)}" for name, norms in parts.items() if norms) or "none"


def trained_iterations(cfg: CfgNode) -> int | None:
    """Return the number of iterations trained so far; None outside of training."""
    try:
        return min(get_event_storage().iter + 1, cfg.SOLVER.MAX_ITER)  # after the last iteration, iter is one too high
    except (AssertionError, IndexError):
        return None
