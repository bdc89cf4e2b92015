"""A step of the training: the images of an iteration, as a whole or in parts, in float32 or mixed precision."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from torch import Tensor, nn

from ..errors import GNDetError


class TrainStep(SimpleTrainer):
    """detectron2's SimpleTrainer and AMPTrainer in one, for any device, with gradients that are added up over parts.

    Args:
        model: from a list of images to a loss, or to losses by name; in DDP or not.
        loader: what an iteration's images are taken from, all of a process at once.
        optimizer: takes one step an iteration.
        device: type of the device that the model is on.
        dtype: what autocast computes in; None for float32 alone.
        parts: the images go through the model in so many parts, one after the other.
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
    ):
        super().__init__(model, loader, optimizer)
        self._device, self._dtype, self._parts = device, dtype, parts
        # Small gradients are lost in float16 alone: bfloat16 has the range of float32.
        self._scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)

    def run_step(self) -> None:
        """One iteration.

        Raises:
            FloatingPointError: the losses are not finite; the weights are as they were.
        """
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        images = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        # detectron2 does so after the forward pass, which then has the last iteration's gradients beside its activations.
        self.optimizer.zero_grad()
        losses: dict[str, Tensor] = {}
        for part, share, sync in self._split(images):
            with sync:
                for name, loss in self._gradients_of(part, share).items():
                    losses[name] = losses.get(name, 0) + loss
        for hook in self._hooks:  # TrainerBase.after_backward, which detectron2 0.6 has not
            hook.after_backward()
        self._write_metrics(losses, data_time)
        self._scaler.step(self.optimizer)
        self._scaler.update()

    def _split(self, images: Sequence) -> Iterator[tuple[Sequence, float, contextlib.AbstractContextManager]]:
        """Each part, its share of the images, and a context in which DDP waits with its exchange for the last part."""
        if self._parts == 1:
            yield images, 1.0, contextlib.nullcontext()
            return
        size = -(-len(images) // self._parts)
        for first in range(0, len(images), size):
            part, last = images[first : first + size], first + size >= len(images)
            waits = not last and hasattr(self.model, "no_sync")
            yield part, len(part) / len(images), self.model.no_sync() if waits else contextlib.nullcontext()

    def _gradients_of(self, images: Sequence, share: float) -> dict[str, Tensor]:
        """Add the images' gradients to those of the parts before; returns their share of the losses."""
        with torch.autocast(self._device, self._dtype, enabled=self._dtype is not None):
            losses = self.model(images)
        if isinstance(losses, Tensor):
            losses = {"total_loss": losses}
        losses = {name: loss * share for name, loss in losses.items()}
        self._scaler.scale(sum(losses.values())).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def state_dict(self) -> dict:
        scaler = {"grad_scaler": self._scaler.state_dict()} if self._scaler.is_enabled() else {}
        return super().state_dict() | scaler

    def load_state_dict(self, state: dict) -> None:
        """Of a run with any precision: where float16 begins, the scale of the loss does too."""
        super().load_state_dict(state)
        if self._scaler.is_enabled() and state.get("grad_scaler"):
            self._scaler.load_state_dict(state["grad_scaler"])


def build_train_step(
    cfg: CfgNode, model: nn.Module, loader: Iterable[Sequence], optimizer: torch.optim.Optimizer
) -> TrainStep:
    """The step of ``SOLVER.AMP``, ``TRAIN.AMP_DTYPE`` and ``TRAIN.ACCUMULATE``.

    Raises:
        GNDetError: the GPU does not compute in bfloat16.
    """
    device = torch.device(cfg.MODEL.DEVICE).type
    dtype = getattr(torch, cfg.TRAIN.AMP_DTYPE) if cfg.SOLVER.AMP.ENABLED else None
    if device == "cuda" and dtype is torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise GNDetError(
            "SOLVER.AMP.ENABLED is True, but this GPU does not compute in bfloat16: set TRAIN.AMP_DTYPE to float16."
        )
    return TrainStep(model, loader, optimizer, device=device, dtype=dtype, parts=cfg.TRAIN.ACCUMULATE)
