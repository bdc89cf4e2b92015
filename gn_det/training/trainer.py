"""detectron2's trainer with what GN training needs."""

import logging
import weakref
from collections import OrderedDict
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model, hooks
from detectron2.modeling import build_model as detectron2_build_model
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from torch import nn

from ..acceleration.inference import speed_up
from ..acceleration.training import apply_switches
from ..checkpoint.checkpointer import build_checkpointer
from ..config.checks import check_switches
from ..errors import GNDetError
from ..evaluation import evaluator as evaluation
from ..evaluation.records import past_values
from ..metrics import storage_key
from ..modeling.norm import is_norm
from .ema import EMA
from .hooks import BestCheckpoint, EarlyStop, EarlyStopped, show_predictions
from .overview import count, norms_text, overview
from .progress import ProgressBar, on_terminal
from .solver import build_optimizer
from .step import build_train_step
from .wandb_writer import WandbWriter

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """detectron2's DefaultTrainer, on a GPU or on CPUs, with gn_det's optimizer, checkpointer, evaluation and switches."""

    def __init__(self, cfg: CfgNode):
        # DefaultTrainer's own __init__ wraps the model for GPUs only: on a CPU, DDP wants device_ids None.
        TrainerBase.__init__(self)
        self._given = cfg
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        check_switches(cfg)  # once more: scaled down, TEST.EVAL_PERIOD may have become 0
        self._bare_model = model = speed_up(cfg, self.build_model(cfg), trains=True)
        apply_switches(cfg, model)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self._ema = EMA(model, cfg.TRAIN.EMA.DECAY) if cfg.TRAIN.EMA.ENABLED else None
        # "model" in a checkpoint is what is evaluated. What is trained stands beside it where that is another.
        evaluated: nn.Module = self._ema.averaged if self._ema else model
        state: dict[str, Any] = {"raw_model": model} if self._ema else {}
        state |= {"trainer": weakref.proxy(self)}
        self.checkpointer = build_checkpointer(cfg, evaluated, cfg.DATASETS.TRAIN, stateful=state)
        devices = [comm.get_local_rank()] if cfg.MODEL.DEVICE.startswith("cuda") else None
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=devices)
        self._trainer = build_train_step(cfg, model, loader, optimizer)
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase]:
        """detectron2's hooks, with those of the switches where their turn is.

        The average takes its step before the checkpointer, so that a checkpoint has both weights of one iteration. The
        best is known after the evaluation, and is there to be written by the writers. Who stops training comes last, as
        no hook after it would have its turn.
        """
        cfg, key, stop = self.cfg, storage_key(self.cfg), self.cfg.TRAIN.EARLY_STOP
        main = comm.is_main_process()
        self._bar = ProgressBar(self.max_iter, cfg.SOLVER.IMS_PER_BATCH) if main and on_terminal() else None
        self._best = BestCheckpoint(key, self.checkpointer) if cfg.TRAIN.BEST and main else None
        self._stop = None
        if stop.PATIENCE:
            self._stop = EarlyStop(key, cfg.TEST.EVAL_PERIOD, stop.PATIENCE, stop.MIN_DELTA, self.checkpointer)
        ret: list[HookBase | None] = []
        if main:
            ret.append(hooks.CallbackHook(before_train=lambda trainer: trainer._say_overview()))
        for hook in super().build_hooks():
            if isinstance(hook, hooks.LRScheduler):
                ret += [hook, self._ema]
            elif isinstance(hook, hooks.EvalHook):
                ret += [hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate), self._best]
            else:
                ret.append(hook)
        ret += [hooks.PeriodicWriter([self._bar], period=1) if self._bar else None, self._stop]
        return [hook for hook in ret if hook is not None]

    def build_writers(self) -> list[EventWriter]:
        writers = super().build_writers()
        return [WandbWriter(self.cfg), *writers] if self.cfg.TRAIN.WANDB.ENABLED else writers

    def _say_overview(self) -> None:
        counts = getattr(self.data_loader, "counts", None)
        logger.info(overview(self._given, self.cfg, self._bare_model, counts, self.start_iter))

    def _evaluate(self) -> dict:
        if self._bar:
            self._bar.hide()
        self._last_eval_results = self.test(self.cfg, self._ema.averaged if self._ema else self.model)
        if comm.is_main_process():
            show_predictions(self.cfg)
        return self._last_eval_results

    def resume_or_load(self, resume: bool = True) -> None:
        """As detectron2's, with what the switches remember."""
        rest = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        goes_on = resume and self.checkpointer.has_checkpoint()
        if goes_on:
            self.start_iter = self.iter + 1
        else:
            _say_classes(rest.get("classes"), self.checkpointer.checkpointables["classes"].names)
        if self._ema:
            self._ema.after_load()
        elif goes_on and "raw_model" in rest:
            self._bare_model.load_state_dict(rest["raw_model"])
            logger.warning(
                "The run had TRAIN.EMA on; it goes on from its weights before averaging, without an average."
            )
        if self._best and resume:
            self._best.recall()
        if self._stop and goes_on and comm.is_main_process():
            cfg = self.cfg
            self._stop.recall(past_values(cfg.OUTPUT_DIR, cfg.DATASETS.TEST[0], cfg.TRAIN.METRIC, self.start_iter))

    def train(self) -> dict | None:
        """As detectron2's; an early stop is an end like any other."""
        if self._stop and (reason := self._stop.reason_to_stop()):
            logger.warning(f"This run has stopped early: {reason}. Raise TRAIN.EARLY_STOP.PATIENCE to go on.")
            return None
        try:
            return super().train()
        except EarlyStopped:
            return None

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return detectron2_build_model(cfg)  # the overview says what it is

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """detectron2's, with ``counts`` of its data set before images without objects are left out."""
        if cfg.MODEL.KEYPOINT_ON:
            return super().build_train_loader(cfg)  # it leaves out more
        rows = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
        if not isinstance(rows, list):
            return super().build_train_loader(cfg)
        counts = count(rows) if comm.is_main_process() else None
        if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and "annotations" in rows[0]:
            rows = filter_images_with_only_crowd_annotations(rows)
        if not rows:
            raise GNDetError(f"No image of {', '.join(cfg.DATASETS.TRAIN)} has an object to train on.")
        loader = build_detection_train_loader(cfg, dataset=rows)
        loader.counts = counts
        return loader

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
    """``backbone 69 GN of 32 groups, roi_heads 8 GN of 32 groups``"""
    parts = {name: [m for m in part.modules() if is_norm(m)] for name, part in model.named_children()}
    return ", ".join(f"{name} {norms_text(norms)}" for name, norms in parts.items() if norms) or "none"


def _say_classes(theirs: object, ours: list[str]) -> None:
    names = theirs.get("names") if isinstance(theirs, dict) else None
    if names and names != ours:
        logger.warning(f"The weights were trained for the classes {names}; training makes them {ours}.")


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
        GNDetError: the weights cannot be read, are not the model's, or were trained for other classes.
    """
    model = speed_up(cfg, build_model(cfg))
    checkpointer = build_checkpointer(cfg, model, cfg.DATASETS.TEST, trains=False)
    rest = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    if "classes" in rest:
        checkpointer.checkpointables["classes"].load_state_dict(rest["classes"])
    return Trainer.test(cfg, model)


def _iteration(cfg: CfgNode) -> int | None:
    try:
        return min(get_event_storage().iter + 1, cfg.SOLVER.MAX_ITER)  # after the last one it is one too high
    except (AssertionError, IndexError):
        return None  # not in training
