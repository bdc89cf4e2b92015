"""One training iteration, with gradient accumulation and mixed precision."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn

from ..acceleration.precision import training_precision
from .guards import signals
from .guards.finite import Batch, DivergedError, FiniteGuard, describe, file_names, gradient_norm, to_host
from .guards.ranks import agree
from .guards.stalls import Stage, enter


class TrainStep(SimpleTrainer):
    """detectron2's SimpleTrainer and AMPTrainer in one class, for any device, with gradient accumulation.

    Args:
        model: maps a list of images to a loss, or to a dict of losses; may be wrapped in DDP.
        loader: yields the images that this process has in one iteration.
        optimizer: takes one step per iteration.
        device: type of the device that the model is on.
        dtype: data type of autocast; None to compute in float32 only.
        parts: number of parts that the images of an iteration are split into. The parts run through
            the model one after the other, and their gradients are added.
        guard: decides what happens to a batch whose losses or gradients are not finite.

    Attributes:
        stop_signal: number of the signal that a process has received, the same in all processes; 0 if none.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Sequence],
        optimizer: torch.optim.Optimizer,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        parts: int = 1,
        guard: FiniteGuard | None = None,
    ):
        super().__init__(model, loader, optimizer)
        self._device, self._dtype, self._parts = device, dtype, parts
        # Only float16 needs a scaled loss to keep small gradients: bfloat16 has the range of float32.
        self._scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)
        self._guard = guard or FiniteGuard()
        self.stop_signal = 0

    def run_step(self) -> None:
        """Run one iteration: load the images, compute the gradients, and take one optimizer step.

        The optimizer step is left out if a loss or a gradient of any process is not finite. With float16, a gradient that
        is not finite is usual, and only lowers the scale of the loss.

        Raises:
            DivergedError: a loss or a gradient is not finite, and no more batches may be skipped. The
                weights are not changed.
        """
        assert self.model.training, "the model was changed to eval mode"
        enter(Stage.LOADS, self.iter)
        start = time.perf_counter()
        images = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        # detectron2 does this after the forward pass, when the gradients of the last iteration would
        # occupy memory at the same time as the new activations.
        self.optimizer.zero_grad()
        batch = Batch({}, file_names(images))
        try:
            is_good, can_step = self._compute_gradients(images, batch)
        except FloatingPointError as error:  # detectron2's RPN raises it for proposals that are not finite
            is_good, batch.reason = False, f"an error in the forward pass ({error})"
            if comm.get_world_size() > 1:  # the other processes wait for gradients
                raise DivergedError(self._guard.sentence(describe({comm.get_rank(): batch}), self.iter)) from None
        enter(Stage.WAITS, self.iter)
        self.stop_signal, any_bad = agree(signals.requested(), int(not is_good))
        if any_bad:
            self._guard.refuse(self.model, batch, self.iter)
        else:
            losses = {name: torch.tensor(loss, dtype=torch.float64) for name, loss in batch.losses.items()}
            self._write_metrics(losses, data_time)
            if can_step:
                self.optimizer.step()
        enter(Stage.FREE)

    def _compute_gradients(self, images: Sequence, batch: Batch) -> tuple[bool, bool]:
        """Compute the gradients of a batch, and store its losses in ``batch``.

        Returns:
            whether the training may go on, and whether the optimizer may take a step.
        """
        losses: dict[str, Tensor] = {}
        for part, share, sync in self._split(images):
            with sync:
                for name, loss in self._add_gradients(part, share).items():
                    losses[name] = losses.get(name, 0) + loss
        for hook in self._hooks:  # detectron2 0.6 has no TrainerBase.after_backward
            hook.after_backward()
        one = torch.ones_like(next(iter(losses.values())))
        scaled_one = self._scaler.scale(one)
        self._scaler.unscale_(self.optimizer)
        self._scaler.update()
        # The only transfer from the device in an iteration: it waits for the forward and backward pass.
        batch.losses, (norm, scale) = to_host(losses, gradient_norm(self.optimizer), scaled_one)
        can_step = math.isfinite(norm)
        return batch.is_finite() and (can_step or scale > 1), can_step

    def _split(self, images: Sequence) -> Iterator[tuple[Sequence, float, contextlib.AbstractContextManager]]:
        """Split the images into parts.

        Yields:
            The images of a part, their share of all images, and a context manager for their backward
            pass. With DDP, it delays the exchange of gradients between processes until the last part.
        """
        if self._parts == 1:
            yield images, 1.0, contextlib.nullcontext()
            return
        size = -(-len(images) // self._parts)
        for first in range(0, len(images), size):
            part, is_last = images[first : first + size], first + size >= len(images)
            delays = not is_last and hasattr(self.model, "no_sync")
            yield part, len(part) / len(images), self.model.no_sync() if delays else contextlib.nullcontext()

    def _add_gradients(self, images: Sequence, share: float) -> dict[str, Tensor]:
        """Add the gradients of one part to those of the parts before it.

        Returns:
            The losses of the part by name, multiplied by its share of all images.
        """
        enter(Stage.FORWARD, self.iter)
        with torch.autocast(self._device, self._dtype, enabled=self._dtype is not None):
            losses = self.model(images)
        if isinstance(losses, Tensor):
            losses = {"total_loss": losses}
        losses = {name: loss * share for name, loss in losses.items()}
        enter(Stage.BACKWARD, self.iter)
        self._scaler.scale(sum(losses.values())).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def state_dict(self) -> dict:
        """Return the state of detectron2's trainer, and with float16 the scale of the loss."""
        scaler = {"grad_scaler": self._scaler.state_dict()} if self._scaler.is_enabled() else {}
        return super().state_dict() | scaler

    def load_state_dict(self, state: dict) -> None:
        """Load the state of a run with any precision.

        If only this run uses float16, the scale of the loss starts at its initial value.
        """
        super().load_state_dict(state)
        if self._scaler.is_enabled() and state.get("grad_scaler"):
            self._scaler.load_state_dict(state["grad_scaler"])


def build_train_step(
    cfg: CfgNode,
    model: nn.Module,
    loader: Iterable[Sequence],
    optimizer: torch.optim.Optimizer,
    last_checkpoint: Callable[[], str] = str,
) -> TrainStep:
    """Build the :class:`TrainStep` for the precision of training, ``TRAIN.ACCUMULATE`` and ``SKIP_NONFINITE``.

    Args:
        last_checkpoint: returns the path of the newest checkpoint for an error message; "" if there is none.

    Raises:
        GNDetError: if the config asks for bfloat16 and the GPU does not support it.
    """
    device, dtype = torch.device(cfg.MODEL.DEVICE).type, training_precision(cfg).dtype
    guard = FiniteGuard(cfg.TRAIN.SKIP_NONFINITE, last_checkpoint)
    return TrainStep(model, loader, optimizer, device=device, dtype=dtype, parts=cfg.TRAIN.ACCUMULATE, guard=guard)
