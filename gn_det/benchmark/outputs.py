"""Compare the detections of two models on the same images."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Instances

TOLERANCE = 1e-4
_MATCH_DISTANCE = 1.0  # pixels; nearer boxes of one class count as the same detection


class _ImageDifference(NamedTuple):
    box: float  # largest difference of a coordinate, in pixels
    score: float  # largest difference of a score
    max_coordinate: float  # of stock
    max_score: float  # of stock
    mask_pixels: int  # mask pixels that differ
    mask_area: int  # mask pixels that were compared
    unmatched: int  # detections of both models that have no match


def differences(stock: Sequence[Instances], other: Sequence[Instances]) -> dict:
    """Match each stock detection with the other model's nearest of the same class, and compare both.

    Args:
        stock: detections of the stock model, one ``Instances`` per image.
        other: detections of the other model on the same images.

    Returns:
        A dict with the keys:
            "boxes": largest difference of a box coordinate, in pixels.
            "boxes_relative": the same, divided by stock's largest coordinate.
            "scores": largest difference of a score, divided by stock's largest score.
            "masks": fraction of mask pixels that differ.
            "unmatched": number of detections of either model without a match within 1 pixel.
            "equal": True if "unmatched" is 0, and "boxes_relative" and "scores" are at most 1e-4.
    """
    images = [_compare_image(a, b) for a, b in zip(stock, other, strict=True)]
    box = max(image.box for image in images)
    relative = box / max(*(image.max_coordinate for image in images), 1.0)
    score = max(image.score for image in images) / max(*(image.max_score for image in images), 1e-9)
    unmatched = sum(image.unmatched for image in images)
    return {
        "boxes": box,
        "boxes_relative": relative,
        "scores": score,
        "masks": sum(image.mask_pixels for image in images) / max(sum(image.mask_area for image in images), 1),
        "unmatched": unmatched,
        "equal": unmatched == 0 and max(relative, score) <= TOLERANCE,
    }


def _compare_image(stock: Instances, other: Instances) -> _ImageDifference:
    boxes, other_boxes = (instances.pred_boxes.tensor.float() for instances in (stock, other))
    max_coordinate = boxes.abs().max().item() if len(stock) else 0.0
    max_score = stock.scores.max().item() if len(stock) else 0.0
    nothing_matched = _ImageDifference(0.0, 0.0, max_coordinate, max_score, 0, 0, len(stock) + len(other))
    if not len(stock) or not len(other):
        return nothing_matched
    distances = (boxes[:, None] - other_boxes[None]).abs().amax(dim=2)
    distances[stock.pred_classes[:, None] != other.pred_classes[None]] = torch.inf
    distance, match = distances.min(dim=1)
    matched = distance < _MATCH_DISTANCE
    if not matched.any():
        return nothing_matched
    match = match[matched]
    pixels = area = 0
    if stock.has("pred_masks"):
        masks = stock.pred_masks[matched]
        pixels, area = int((masks != other.pred_masks[match]).sum()), masks.numel()
    return _ImageDifference(
        box=distance[matched].max().item(),
        score=(stock.scores[matched].float() - other.scores[match].float()).abs().max().item(),
        max_coordinate=max_coordinate,
        max_score=max_score,
        mask_pixels=pixels,
        mask_area=area,
        unmatched=len(stock) + len(other) - len(match) - len(match.unique()),
    )
