"""Find losses and gradients that are not finite before they change the weights."""

import dataclasses
import logging
import math
import re
from collections.abc import Callable, Iterable

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from ...errors import GNDetError

logger = logging.getLogger(__name__)

# Matches the sentence of a training that diverged, and its iteration.
DIVERGED = re.compile(r"The training stops at iteration=(\d+)")
_SHOWN = 8  # images in a sentence


class DivergedError(GNDetError):
    """A loss or a gradient is NaN or infinite."""


def to_host(losses: dict[str, Tensor], *others: Tensor) -> tuple[dict[str, float], list[float]]:
    """Copy scalars from the device in one transfer.

    Returns:
        the losses by name, and the other values.
    """
    values = torch.stack([value.reshape(()) for value in (*losses.values(), *others)]).tolist()
    return dict(zip(losses, values, strict=False)), values[len(losses) :]


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """Return the norm of the gradients of all parameters of an optimizer, as a scalar tensor.

    It is NaN or infinite if an element of a gradient is, or if the sum of the squares overflows.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


@dataclasses.dataclass
class Batch:
    """What one process had in an iteration.

    Attributes:
        losses: losses by name; empty if the forward pass failed.
        images: file names.
        reason: what is not finite where all losses are finite.
    """

    losses: dict[str, float]
    images: list[str]
    reason: str = "a gradient that is NaN or infinite"

    def is_finite(self) -> bool:
        """Return whether all losses are finite."""
        return all(map(math.isfinite, self.losses.values()))


class FiniteGuard:
    """Skip a limited number of batches whose losses or gradients are not finite, then stop the training.

    Args:
        skip: number of batches that may be skipped.
        last_checkpoint: returns the path of the newest checkpoint; "" if there is none.
    """

    def __init__(self, skip: int = 0, last_checkpoint: Callable[[], str] = str):
        self._limit, self._last_checkpoint = skip, last_checkpoint
        self.skipped = 0

    def refuse(self, model: nn.Module, batch: Batch, iteration: int) -> None:
        """Log the batch that is skipped. All processes must call it together.

        Args:
            model: its buffers must be finite, otherwise the batch cannot be skipped.
            batch: what this process had in the iteration.
            iteration: from 0.

        Raises:
            DivergedError: no more batches may be skipped.
        """
        what = describe(dict(enumerate(comm.all_gather(batch))))
        if self.skipped == self._limit:
            raise DivergedError(self.sentence(what, iteration))
        broken = [name for name, buffer in model.named_buffers() if not buffer.isfinite().all()]
        if broken := sum(comm.all_gather(broken), []):
            raise DivergedError(
                self.sentence(f"{what}, which also changed the buffer {broken[0]} to NaN or infinity", iteration)
            )
        self.skipped += 1
        logger.warning(
            f"Skipped the batch of iteration {iteration}, because of {what} (number {self.skipped} of at most "
            f"{self._limit}, TRAIN.SKIP_NONFINITE)."
        )

    def sentence(self, what: str, iteration: int) -> str:
        """Return the sentence that says why the training stops, with the newest checkpoint.

        Args:
            what: what is not finite, as :func:`describe` returns it.
        """
        path = self._last_checkpoint()
        start = f"continue from {path} with --resume" if path else "start again, as there is no checkpoint yet"
        return (
            f"The training stops at iteration={iteration}, before the optimizer step, because of {what}: lower "
            f"SOLVER.BASE_LR or look at these images, then {start}."
        )


def file_names(images: Iterable) -> list[str]:
    """Return the file names of the images of a batch, "?" where they have none."""
    return [str(image.get("file_name", "?")) if isinstance(image, dict) else "?" for image in images]


def describe(batches: dict[int, Batch]) -> str:
    """Return a clause that names what is not finite, and the images.

    Args:
        batches: by rank. If the losses of some ranks are not finite, the others are not named.
    """
    bad = {rank: batch for rank, batch in batches.items() if not batch.is_finite()}
    named = bad or batches
    if bad:
        texts = [f"{name} {value:.4g}" for batch in bad.values() for name, value in batch.losses.items()]
        what = f"a loss that is not finite ({', '.join(texts)})"
    else:
        what = next(iter(batches.values())).reason
    ranks = f" of rank {', '.join(map(str, named))}" if comm.get_world_size() > 1 else ""
    images = [name for batch in named.values() for name in batch.images]
    more = f" and {len(images) - _SHOWN} more" if len(images) > _SHOWN else ""
    return f"{what}, with the images{ranks} {', '.join(images[:_SHOWN])}{more}"
