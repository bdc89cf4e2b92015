"""Matching and sampling of boxes for all images at once, with fixed sizes."""

from dataclasses import dataclass

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Instances
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Targets:
    """The ground truth of a batch, padded to G objects per image.

    Attributes:
        boxes: (N, G, 4) in pixels; 0 in the padding.
        classes: (N, G); 0 in the padding.
        valid: (N, G), False in the padding.
    """

    boxes: Tensor
    classes: Tensor
    valid: Tensor


def pad_targets(instances: list[Instances]) -> Targets:
    """Pad the ground truth of N images to the largest number of objects, and to at least 1."""
    boxes = [image.gt_boxes.tensor for image in instances]
    classes = [image.gt_classes for image in instances]
    if not any(len(of_image) for of_image in boxes):
        boxes = [of_image.new_zeros(1, 4) for of_image in boxes]
        classes = [of_image.new_zeros(1) for of_image in classes]
        valid = [torch.zeros_like(of_image, dtype=torch.bool) for of_image in classes]
    else:
        valid = [torch.ones_like(of_image, dtype=torch.bool) for of_image in classes]
    return Targets(*(pad_sequence(values, batch_first=True) for values in (boxes, classes, valid)))


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU (N, G, A) of boxes (N, G, 4) and (N or 1, A, 4), as detectron2's ``pairwise_iou``."""
    sides = torch.minimum(a[:, :, None, 2:], b[:, None, :, 2:]) - torch.maximum(a[:, :, None, :2], b[:, None, :, :2])
    intersection = sides.clamp_(min=0).prod(dim=3)
    area_a, area_b = ((x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1]) for x in (a, b))
    union = area_a[:, :, None] + area_b[:, None] - intersection
    return torch.where(intersection > 0, intersection / union, 0)


def match(matcher: Matcher, quality: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Match candidates to ground truth, as detectron2's ``Matcher`` does for one image.

    Args:
        matcher: its thresholds, labels and ``allow_low_quality_matches`` are used.
        quality: (N, G, A), the IoU of each object and candidate.
        valid: (N, G), False in the padding of the ground truth.

    Returns:
        the index of the object that each candidate matches, (N, A), and its label, (N, A): 1 positive,
        0 negative, -1 ignored.
    """
    quality = quality.masked_fill(~valid[:, :, None], -1)
    best, index = quality.max(dim=1)
    label = torch.ones_like(index)
    for value, low, high in zip(matcher.labels, matcher.thresholds[:-1], matcher.thresholds[1:], strict=True):
        label = label.masked_fill((best >= low) & (best < high), value)
    if matcher.allow_low_quality_matches:
        is_best = (quality == quality.amax(dim=2, keepdim=True)) & valid[:, :, None]
        label = label.masked_fill(is_best.any(dim=1), 1)
    return index, label


def sample(positive: Tensor, negative: Tensor, number: int, fraction: float, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Sample candidates at random, as detectron2's ``subsample_labels`` does for one image.

    Args:
        positive, negative: (N, A) bool.
        number: number of candidates to sample per image.
        fraction: the largest fraction of ``number`` that may be positive. Negatives fill the rest.
        keys: (N, A), random numbers of at least 0 and below 1. The candidates with the largest are sampled.

    Returns:
        the indices of the samples, (N, S), and their labels, (N, S). S is ``number``, or A if that is less.
        The positives (label 1) come first, then the negatives (0), then slots to be ignored (-1), which
        remain if there are too few candidates.
    """
    candidates = keys.shape[1]
    top = keys.masked_fill(~positive, -1).topk(min(int(number * fraction), candidates), dim=1)
    chosen = torch.zeros_like(positive).scatter(1, top.indices, top.values >= 0)
    rank = torch.where(chosen, keys + 1, keys.masked_fill(~negative, -1))
    top = rank.topk(min(number, candidates), dim=1)
    return top.indices, top.values.floor().clamp(max=1).long()


def take(values: Tensor, index: Tensor) -> Tensor:
    """Return the rows (N, S, C) of values (N, A, C) at an index (N, S)."""
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[2]))


def box_deltas(transform: Box2BoxTransform, source: Tensor, target: Tensor, positive: Tensor) -> Tensor:
    """Return the regression targets (..., 4) from boxes to boxes, both (..., 4); 0 where not positive (...).

    Same as the ``get_deltas`` of detectron2's transform, which checks the boxes on the host.
    """
    size, target_size = source[..., 2:] - source[..., :2], target[..., 2:] - target[..., :2]
    center, target_center = source[..., :2] + 0.5 * size, target[..., :2] + 0.5 * target_size
    (x, y), (w, h) = (target_center - center).unbind(-1), size.unbind(-1)
    log_w, log_h = (target_size / size).log().unbind(-1)
    wx, wy, ww, wh = transform.weights
    deltas = torch.stack([wx * x / w, wy * y / h, ww * log_w, wh * log_h], dim=-1)
    return torch.where(positive[..., None], deltas, 0)
