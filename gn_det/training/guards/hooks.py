"""Hooks that end a training or an evaluation after a signal, with a checkpoint."""

from pathlib import Path

from detectron2.engine import HookBase, TrainerBase
from detectron2.engine.hooks import EvalHook
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer

from ...checkpoint.newest import read_last
from .signals import Interrupted


class Evaluation(EvalHook):
    """detectron2's EvalHook, which a signal can interrupt, and which does not evaluate after a failed training.

    The trainer must have the method ``stop_after`` of :class:`gn_det.training.trainer.Trainer`.

    Attributes:
        interrupted: signal that has ended the evaluation at the end of the training; 0 if none has.
    """

    interrupted = 0

    def after_step(self) -> None:
        """Evaluate if it is time."""
        try:
            super().after_step()
        except Interrupted as signal:
            self.trainer.stop_after(signal.number)

    def after_train(self) -> None:
        """Evaluate if all iterations are done. detectron2 also evaluates if the last iteration has failed."""
        if self.trainer.iter < self.trainer.max_iter:
            return
        try:
            super().after_train()
        except Interrupted as signal:
            self.interrupted = signal.number  # the other hooks still have to close their files


class StopOnSignal(HookBase):
    """Hook that ends the training after an iteration in which a process has received a signal.

    It must come after the hook that saves checkpoints, and before evaluations, which may take long. The trainer must have
    ``stop_signal`` and ``stop_after`` of :class:`gn_det.training.trainer.Trainer`.
    """

    def after_step(self) -> None:
        """End the training if there is a signal."""
        if number := self.trainer.stop_signal:
            self.trainer.stop_after(number)


def save_now(trainer: TrainerBase, checkpointer: Checkpointer) -> str:
    """Save a checkpoint of the current iteration, unless it is already saved. All processes must call it together.

    Returns:
        the path of the checkpoint.
    """
    last = trainer.iter == trainer.max_iter - 1
    name = "model_final" if last else f"model_{trainer.iter:07d}"
    path = Path(checkpointer.save_dir, f"{name}.pth")
    if comm.all_gather(read_last(checkpointer.save_dir)[0] != path.name)[0]:
        checkpointer.save(name, iteration=trainer.iter)
        comm.synchronize()
    return str(path)
