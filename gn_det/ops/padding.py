"""The part of each image in a padded batch, for operations that must not read or write the padding.

detectron2 pads the images of a batch with zeros, on the right and at the bottom, to the size of the
largest one. Within :func:`extents_in_use`, group normalization computes its statistics over the
rectangle of each image and writes zeros elsewhere, so that the features of an image do not depend on
the other images of the batch.

Shapes: N images, C channels, H x W pixels of a feature map, h x w pixels of one image in it.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

_MAX_STRIDE_LOG2 = 8  # feature maps of stride 1 to 256
_state = threading.local()


@dataclass(frozen=True)
class Extents:
    """The sizes of the images in a padded batch.

    Attributes:
        padded: (height, width) of the batch in pixels.
        sizes: (height, width) of each image in pixels, including the padding that it gets when it is alone.
    """

    padded: tuple[int, int]
    sizes: tuple[tuple[int, int], ...]

    def at_stride(self, stride: int) -> list[tuple[int, int]]:
        """Return (h, w) of each image in feature maps of a stride."""
        return [_at_stride(size, stride) for size in self.sizes]

    def rectangles(self, x: torch.Tensor) -> list[tuple[int, int]]:
        """Return (h, w) of each image in a feature map of this batch.

        A layer of stride 2 turns a side of n pixels into ceil(n / 2). So the rectangle at stride s has
        ceil(height / s) x ceil(width / s) pixels, and s follows from the shape of x.

        Args:
            x: (N, C, H, W).

        Raises:
            ValueError: x is not a feature map of this batch whose stride is a power of 2.
        """
        for log2 in range(_MAX_STRIDE_LOG2 + 1):
            if tuple(x.shape[2:]) == _at_stride(self.padded, 2**log2):
                return self.at_stride(2**log2)
        raise ValueError(f"{tuple(x.shape)} is not a feature map of images of {self.padded} pixels at a stride of 2^n")


def _at_stride(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-size[0] // stride), -(-size[1] // stride)


def attach_extents(x: torch.Tensor, extents: Extents) -> None:
    """Let a batch of images, or one of its feature maps, carry the extents of the batch."""
    x._gn_det_extents = extents  # type: ignore[attr-defined]


def extents_of(x: torch.Tensor) -> Extents | None:
    """Return the extents that x carries; None if no image of the batch is padded."""
    return getattr(x, "_gn_det_extents", None)


@contextlib.contextmanager
def extents_in_use(extents: Extents | None) -> Iterator[None]:
    """Let the operations of this thread within the block know the extents; None: no image is padded."""
    before = current_extents()
    _state.extents = extents
    try:
        yield
    finally:
        _state.extents = before


def current_extents() -> Extents | None:
    """Return the extents in use in this thread."""
    if torch.compiler.is_compiling():  # ignore_padding does not work in compiled code
        return None
    return getattr(_state, "extents", None)


def current_rectangles(x: torch.Tensor) -> list[tuple[int, int]] | None:
    """Return (h, w) of each image in x (N, C, H, W), or None if no image of x is padded."""
    extents = current_extents()
    return extents.rectangles(x) if extents else None


def clear_padding(x: torch.Tensor) -> torch.Tensor:
    """Return x (N, C, H, W) with zeros outside the rectangle of each image; no gradient flows from there.

    x is changed in place unless it needs a gradient.
    """
    rectangles = current_rectangles(x)
    if rectangles is None:
        return x
    if not x.requires_grad:
        for image, (h, w) in enumerate(rectangles):
            x[image, :, h:].zero_()
            x[image, :, :h, w:].zero_()
        return x
    outside = torch.ones((len(x), 1, *x.shape[2:]), dtype=torch.bool, device=x.device)
    for image, (h, w) in enumerate(rectangles):
        outside[image, :, :h, :w] = False
    return x.masked_fill(outside, 0)


def within_rectangles(
    function: Callable[..., torch.Tensor], x: torch.Tensor, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """Apply a function to the rectangle of each image, and return zeros elsewhere.

    If no image of x is padded, this is ``function(x, residual)``.

    Args:
        function: takes a part (1, C, h, w) of x, and that of the residual or None; returns a tensor of
            the shape of the part.
        x, residual: (N, C, H, W).

    Returns:
        (N, C, H, W). The padding of x gets no gradient.
    """
    rectangles = current_rectangles(x)
    if rectangles is None:
        return function(x, residual)
    outputs = []
    for image, (h, w) in enumerate(rectangles):
        parts = [None if t is None else t[image : image + 1, :, :h, :w] for t in (x, residual)]
        outputs.append(F.pad(function(*parts), (0, x.shape[3] - w, 0, x.shape[2] - h)))
    return torch.cat(outputs)
