"""detectron2's trainer with what GN training needs."""

import logging
import weakref
from collections import Counter, OrderedDict
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, TrainerBase, create_ddp_model
from detectron2.modeling import build_model as detectron2_build_model
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from . import evaluation
from .checkpoint import Checkpointer
from .errors import GNDetError
from .norm import is_norm
from .solver import build_optimizer

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


class Trainer(DefaultTrainer):
    """detectron2's DefaultTrainer, on a GPU or on CPUs, with gn_det's optimizer, checkpointer and evaluation."""

    def __init__(self, cfg: CfgNode):
        # DefaultTrainer's own __init__ wraps the model for GPUs only: on a CPU, DDP wants device_ids None.
        TrainerBase.__init__(self)
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        devices = [comm.get_local_rank()] if cfg.MODEL.DEVICE.startswith("cuda") else None
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=devices)
        self._trainer = (AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer)(model, loader, optimizer)
        self.checkpointer = build_checkpointer(cfg, model, cfg.DATASETS.TRAIN, trainer=weakref.proxy(self))
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return build_model(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> evaluation.COCOEvaluator:
        return evaluation.build_evaluator(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None) -> dict:
        """Evaluate on ``DATASETS.TEST``, with a record and a table of each.

        Returns:
            {"bbox": {"AP": percent, ...}, "segm": ...}, or one such dict for each of several data sets.
        """
        if evaluators is not None:
            return super().test(cfg, model, evaluators)
        results = OrderedDict()
        for name in cfg.DATASETS.TEST:
            loader = cls.build_test_loader(cfg, name)
            results[name] = evaluation.evaluate(cfg, model, name, loader, _iteration(cfg))
        return results.popitem()[1] if len(results) == 1 else results


def build_model(cfg: CfgNode) -> nn.Module:
    """The model of a config, with a line in the log on its size and its norms."""
    model = detectron2_build_model(cfg)
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info(
        f"Model: {total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M of them trained; norms: {_norms(model)}."
    )
    return model


def _norms(model: nn.Module) -> str:
    """``backbone 69 GroupNorm, roi_heads 8 GroupNorm``"""
    parts = []
    for name, part in model.named_children():
        kinds = Counter(type(m).__name__ for m in part.modules() if is_norm(m))
        parts += [f"{name} {number} {kind}" for kind, number in kinds.items()]
    return ", ".join(parts) or "none"


def build_checkpointer(cfg: CfgNode, model: nn.Module, datasets: Sequence[str], **stateful) -> Checkpointer:
    """A checkpointer for ``OUTPUT_DIR`` that remembers the config, and the classes of the first of the data sets."""
    metadata = MetadataCatalog.get(datasets[0])
    ids = metadata.get("thing_dataset_id_to_contiguous_id", {})
    classes = ClassNames(metadata.get("thing_classes", []), sorted(ids, key=ids.get))
    return Checkpointer(model, cfg.OUTPUT_DIR, classes=classes, config=ConfigText(cfg), **stateful)


def train(cfg: CfgNode, resume: bool = False) -> dict:
    """Train, and evaluate at the end. Returns what :meth:`Trainer.test` does."""
    trainer = Trainer(cfg)
    if resume and not trainer.checkpointer.has_checkpoint():
        start = f"from {cfg.MODEL.WEIGHTS}" if cfg.MODEL.WEIGHTS else "from scratch"
        logger.warning(f"--resume: {cfg.OUTPUT_DIR} holds no checkpoint, so training begins {start}.")
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return getattr(trainer, "_last_eval_results", {})


def evaluate_only(cfg: CfgNode, resume: bool = False) -> dict:
    """Evaluate ``MODEL.WEIGHTS``, or with ``resume`` the last checkpoint in ``OUTPUT_DIR``.

    Raises:
        GNDetError: the weights cannot be read, or were trained for other classes.
    """
    model = build_model(cfg)
    checkpointer = build_checkpointer(cfg, model, cfg.DATASETS.TEST)
    rest = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    if "classes" in rest:
        checkpointer.checkpointables["classes"].load_state_dict(rest["classes"])
    return Trainer.test(cfg, model)


def _iteration(cfg: CfgNode) -> int | None:
    try:
        return min(get_event_storage().iter + 1, cfg.SOLVER.MAX_ITER)  # after the last one it is one too high
    except (AssertionError, IndexError):
        return None  # not in training
