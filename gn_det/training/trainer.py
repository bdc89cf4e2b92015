"""Trainer based on detectron2's DefaultTrainer, and functions to train or evaluate a config."""

import logging
import signal
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model, hooks
from detectron2.modeling import build_model as detectron2_build_model
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from torch import nn

from ..acceleration.inference import apply_model_options
from ..acceleration.training import apply_training_options
from ..checkpoint.checkpointer import build_checkpointer
from ..checkpoint.saving import FINAL_FILE
from ..checkpoint.uri import find_weights
from ..config.checks import check_training_options
from ..data.mapper import Mapper
from ..data.paths import check_file_names
from ..errors import GNDetError
from ..evaluation import evaluator as evaluation
from ..evaluation.records import Weights, past_values, weights_of
from ..metrics import storage_key
from ..modeling.norm import is_norm
from .ema import EMA
from .guards.disk import tolerant
from .guards.hooks import Evaluation, StopOnSignal, save_now
from .guards.run import guarded, guarded_evaluation
from .guards.signals import Interrupted, Stopped, ignore_signals_in_workers, start_worker
from .hooks import BestCheckpoint, EarlyStop, EarlyStopped, ReadMetrics, show_predictions
from .loader import TrainLoader
from .overview import count_objects, describe_norms, format_overview
from .progress import ProgressBar, on_terminal
from .resume import DataOrder, with_max_iter
from .seeds import SeedIterations, run_seed
from .solver import build_optimizer
from .step import build_train_step
from .wandb_writer import WandbWriter

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """detectron2's DefaultTrainer with gn_det's optimizer, checkpointer, evaluation and training options.

    Runs on GPUs and on CPUs. The options are the keys of the section ``TRAIN``.
    """

    def __init__(self, cfg: CfgNode):
        # DefaultTrainer.__init__ is not called, because it supports DDP only on GPUs. On a CPU, DDP
        # needs device_ids=None.
        TrainerBase.__init__(self)
        self._original_cfg = cfg
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        check_training_options(cfg)  # again, because scaling may have reduced TEST.EVAL_PERIOD to 0
        self._unwrapped_model = model = apply_model_options(cfg, self.build_model(cfg), for_training=True)
        apply_training_options(cfg, model)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        ignore_signals_in_workers(loader)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        devices = [comm.get_local_rank()] if cfg.MODEL.DEVICE.startswith("cuda") else None
        parallel = create_ddp_model(model, broadcast_buffers=False, device_ids=devices)
        # After DDP has copied the initial weights of the main process, so that all processes average the same ones.
        self._ema = EMA(model, cfg.TRAIN.EMA.DECAY) if cfg.TRAIN.EMA.ENABLED else None
        # "model" in a checkpoint holds the weights that are evaluated. With EMA these are the averaged
        # weights, and the weights that are trained are saved as "raw_model".
        evaluated: nn.Module = self._ema.averaged if self._ema else model
        state: dict[str, Any] = {"raw_model": model} if self._ema else {}
        seed = loader.seed if isinstance(loader, TrainLoader) else run_seed(cfg)
        self._order, self._seeds = DataOrder(loader, seed), SeedIterations(seed)
        state |= {"data_order": self._order, "trainer": weakref.proxy(self)}
        self.checkpointer = build_checkpointer(cfg, evaluated, cfg.DATASETS.TRAIN, stateful=state)
        self._trainer = build_train_step(cfg, parallel, loader, optimizer, self._last_checkpoint)
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase]:
        """Return detectron2's hooks and those of the training options.

        The order matters. The EMA is updated before the checkpointer runs, so that a checkpoint has
        trained and averaged weights of the same iteration. A signal ends the training after the
        checkpointer and before an evaluation. The best weights are saved after the evaluation. The
        early stop comes last, because no hook after it would run.
        """
        cfg, key, stop = self.cfg, storage_key(self.cfg), self.cfg.TRAIN.EARLY_STOP
        main = comm.is_main_process()
        self._bar = ProgressBar(self.max_iter, cfg.SOLVER.IMS_PER_BATCH) if main and on_terminal() else None
        self._best = BestCheckpoint(key, self.checkpointer) if cfg.TRAIN.BEST and main else None
        self._stop = None
        if stop.PATIENCE:
            self._stop = EarlyStop(key, cfg.TEST.EVAL_PERIOD, stop.PATIENCE, stop.MIN_DELTA, self.checkpointer)
        ret: list[HookBase | None] = [self._seeds, ReadMetrics() if cfg.TRAIN.FEWER_SYNCS else None]
        if main:
            ret.append(hooks.CallbackHook(before_train=lambda trainer: trainer._log_overview()))
        for hook in super().build_hooks():
            if isinstance(hook, hooks.LRScheduler):
                ret += [hook, self._ema]
            elif isinstance(hook, hooks.EvalHook):
                self._evaluation = Evaluation(cfg.TEST.EVAL_PERIOD, self._evaluate)
                ret += [StopOnSignal(), self._evaluation, self._best]
            else:
                ret.append(hook)
        ret += [hooks.PeriodicWriter([self._bar], period=1) if self._bar else None, self._stop]
        return [hook for hook in ret if hook is not None]

    def build_writers(self) -> list[EventWriter]:
        """Return detectron2's writers, and the one for Weights & Biases if it is enabled.

        A full disk does not stop the writers of ``metrics.json`` and of the TensorBoard events.
        """
        writers = [tolerant(writer, self.cfg.OUTPUT_DIR) for writer in super().build_writers()]
        return [WandbWriter(self.cfg), *writers] if self.cfg.TRAIN.WANDB.ENABLED else writers

    def _last_checkpoint(self) -> str:
        """Return the path of the newest checkpoint; "" if there is none."""
        return self.checkpointer.get_checkpoint_file() if self.checkpointer.has_checkpoint() else ""

    @property
    def stop_signal(self) -> int:
        """Number of the signal that a process has received before the last step; 0 if none. Equal in all processes."""
        return self._trainer.stop_signal

    def stop_after(self, number: int) -> NoReturn:
        """Save a checkpoint, and end the training after the signal ``number``. All processes must call it together.

        Raises:
            Stopped: always.
        """
        path = save_now(self, self.checkpointer)
        name, done = signal.Signals(number).name, self.iter + 1
        logger.warning(
            f"Stopped by {name} after {done} of {self.max_iter} iterations; continue from {path} with --resume."
        )
        raise Stopped(number)

    def _log_overview(self) -> None:
        counts = getattr(self.data_loader, "counts", None)
        logger.info(format_overview(self._original_cfg, self.cfg, self._unwrapped_model, counts, self.start_iter))

    def _evaluate(self) -> dict:
        if self._bar:
            self._bar.hide()
        self._last_eval_results = self.test(self.cfg, self._ema.averaged if self._ema else self.model)
        if comm.is_main_process():
            show_predictions(self.cfg)
        return self._last_eval_results

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the newest good checkpoint in ``OUTPUT_DIR`` if ``resume`` is set, otherwise ``MODEL.WEIGHTS``.

        Same as detectron2's method; in addition, restores the state of EMA, best weights, early stop, and
        the order of the images, and logs what differs from the checkpoint.

        Raises:
            GNDetError: as for :meth:`gn_det.checkpoint.checkpointer.Checkpointer.resume_or_load`.
        """
        rest = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        resumes = bool(self.checkpointer.resumed_from)
        if resumes:
            self._resume()
        else:
            _warn_about_classes(rest.get("classes"), self.checkpointer.checkpointables["classes"].names)
        if self._ema:
            self._ema.after_load()
        elif resumes and "raw_model" in rest:
            self._unwrapped_model.load_state_dict(rest["raw_model"])
            logger.warning(
                "The checkpoint was trained with TRAIN.EMA.ENABLED, which is off now: training resumes from the weights "
                "before averaging, and the average is dropped."
            )
        if self._best and resume:
            self._best.restore()
        if self._stop and resumes and comm.is_main_process():
            cfg = self.cfg
            self._stop.restore(past_values(cfg.OUTPUT_DIR, cfg.DATASETS.TEST[0], cfg.TRAIN.METRIC, self.start_iter))

    def _resume(self) -> None:
        """Go on from the state of the training that was loaded."""
        self.start_iter = self.iter + 1
        self._order.resume(self.checkpointer, self.cfg, self.start_iter)
        self._seeds.seed = self._order.seed
        if self.start_iter >= self.max_iter:
            # Result records and model_best.pth take the number of iterations from here.
            self.max_iter, self.cfg = self.start_iter, with_max_iter(self.cfg, self.start_iter)

    def train(self) -> dict | None:
        """Train until ``SOLVER.MAX_ITER`` or an early stop. Same as detectron2's method otherwise.

        Returns:
            The results of the last evaluation (see :meth:`test`) if ``TEST.EXPECTED_RESULTS`` is set,
            otherwise None.

        Raises:
            Stopped: a process has received a signal.
            GNDetError: a loss or gradient is not finite.
        """
        if self._stop and (reason := self._stop.reason_to_stop()):
            logger.warning(f"This run has stopped early: {reason}. Raise TRAIN.EARLY_STOP.PATIENCE to continue it.")
            return None
        if self.checkpointer.resumed_from not in ("", FINAL_FILE) and self.start_iter == self.max_iter:
            self.checkpointer.save("model_final", iteration=self.iter)  # the run was killed before that
        try:
            results = super().train()
        except EarlyStopped:
            return None
        if number := self._evaluation.interrupted:
            logger.warning(f"{signal.Signals(number).name} has stopped the evaluation; --resume evaluates again.")
            raise Stopped(number)
        return results

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model without logging it, because the overview describes it."""
        return detectron2_build_model(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Same as :func:`gn_det.training.solver.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """Build the training loader, with an attribute ``counts`` for the overview.

        ``counts`` are the :class:`gn_det.training.overview.Counts` of the training set, including the
        images without objects, which the loader leaves out. It is None in processes other than the
        main process, and not set for keypoint models and iterable datasets.

        Raises:
            GNDetError: if no training image has an object, or an image is outside its image folder.
        """
        names, leaves_out = cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        if cfg.MODEL.KEYPOINT_ON:
            keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
            rows = get_detection_dataset_dicts(names, leaves_out, keypoints)
            check_file_names(names, rows)
            return TrainLoader(cfg, rows, worker_init_fn=start_worker)
        rows = get_detection_dataset_dicts(names, filter_empty=False)
        if not isinstance(rows, list):
            return build_detection_train_loader(cfg, mapper=Mapper(cfg, is_train=True))
        check_file_names(names, rows)
        counts = count_objects(rows) if comm.is_main_process() else None
        if leaves_out and "annotations" in rows[0]:
            rows = filter_images_with_only_crowd_annotations(rows)
        if not rows:
            raise GNDetError(f"No image of {', '.join(names)} has an object to train on.")
        loader = TrainLoader(cfg, rows, worker_init_fn=start_worker)
        loader.counts = counts
        return loader

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """Same as detectron2's, with ``INFERENCE.BATCH_SIZE`` images per batch.

        Raises:
            GNDetError: if an image is outside its image folder.
        """
        rows = get_detection_dataset_dicts(dataset_name, filter_empty=False)
        if isinstance(rows, list):
            check_file_names([dataset_name], rows)
        loader = build_detection_test_loader(
            rows,
            mapper=Mapper(cfg, is_train=False),
            batch_size=cfg.INFERENCE.BATCH_SIZE,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )
        ignore_signals_in_workers(loader)
        return loader

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> evaluation.COCOEvaluator:
        """Same as :func:`gn_det.evaluation.evaluator.build_evaluator`."""
        return evaluation.build_evaluator(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None, weights: Weights | None = None) -> dict:
        """Evaluate a model on each dataset of ``DATASETS.TEST``, write records and log tables.

        Args:
            cfg: config with the datasets.
            model: model in training or evaluation mode.
            evaluators: if given, detectron2's method runs these evaluators instead.
            weights: the weights of the model, for the records, if it was not trained by this run.

        Returns:
            A dict with these keys; for several datasets, a dict from their names to such dicts:

            - "bbox": dict from the name of a metric of boxes ("AP", "AP50", ...) to its value in percent.
            - "segm": same for masks, if the model has them.

            In processes other than the main process, the dict for a dataset is empty.
        """
        if evaluators is not None:
            return super().test(cfg, model, evaluators)
        results = OrderedDict()
        for name in cfg.DATASETS.TEST:
            loader = cls.build_test_loader(cfg, name)
            with guarded_evaluation() as callbacks:
                results[name] = evaluation.evaluate(
                    cfg, model, name, loader, _trained_iterations(cfg), weights, callbacks
                )
        return results.popitem()[1] if len(results) == 1 else results


def build_and_log_model(cfg: CfgNode) -> nn.Module:
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


def _warn_about_classes(saved: object, class_names: list[str]) -> None:
    """Warn if loaded weights were trained for other classes.

    Args:
        saved: entry "classes" of the checkpoint; None if it has none.
        class_names: classes of the training set.
    """
    saved_names = saved.get("names") if isinstance(saved, dict) else None
    if saved_names and saved_names != class_names:
        logger.warning(
            f"The weights were trained for the classes {saved_names}; this run trains the classes {class_names}."
        )


def train(cfg: CfgNode, resume: bool = False, accept: Callable[[], object] | None = None) -> dict:
    """Train the model of a config, and evaluate it at the end.

    Args:
        cfg: checked config.
        resume: continue from the last checkpoint in ``OUTPUT_DIR``, if there is one.
        accept: called in each process when the weights are loaded, before the training starts.

    Returns:
        The results of the last evaluation, see :meth:`Trainer.test`; empty if nothing was evaluated.
    """
    with guarded(cfg):
        trainer = Trainer(cfg)
        if resume and not trainer.checkpointer.has_checkpoint():
            start = f"from {cfg.MODEL.WEIGHTS}" if cfg.MODEL.WEIGHTS else "from scratch"
            logger.warning(f"--resume: {cfg.OUTPUT_DIR} holds no checkpoint, so training begins {start}.")
        trainer.resume_or_load(resume=resume)
        if accept:
            accept()
        trainer.train()
        return getattr(trainer, "_last_eval_results", {})


def evaluate_only(
    cfg: CfgNode, resume: bool = False, accept: Callable[[Weights | None], CfgNode] | None = None
) -> dict:
    """Evaluate ``MODEL.WEIGHTS``, or with ``resume`` the last checkpoint in ``OUTPUT_DIR``.

    Args:
        accept: called in each process when the weights are loaded. Takes the weights, or None in processes
            other than the main process; returns the config of the evaluation, whose ``OUTPUT_DIR`` may differ.

    Returns:
        The results, see :meth:`Trainer.test`.

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
    model = apply_model_options(cfg, build_and_log_model(cfg))
    checkpointer = build_checkpointer(cfg, model, cfg.DATASETS.TEST, trains=False)
    rest = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    if "classes" in rest:
        checkpointer.checkpointables["classes"].load_state_dict(rest["classes"])
    weights, loaded = None, checkpointer.loaded_from
    if loaded and comm.is_main_process():
        weights = weights_of(loaded, find_weights(loaded), rest)
    return Trainer.test(accept(weights) if accept else cfg, model, weights=weights)


def _trained_iterations(cfg: CfgNode) -> int | None:
    """Return the number of iterations trained so far; None outside of training."""
    try:
        return min(get_event_storage().iter + 1, cfg.SOLVER.MAX_ITER)  # after the last iteration, iter is one too high
    except (AssertionError, IndexError):
        return None
