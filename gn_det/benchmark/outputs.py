"""How far the detections of two models are apart."""

from collections.abc import Sequence

import torch
from detectron2.structures import Instances

TOLERANCE = 1e-4
_SAME = 1.0  # pixels, within which two boxes of a class are one detection


def differences(stock: Sequence[Instances], ours: Sequence[Instances]) -> dict:
    """Each of stock's detections beside the nearest of ours in its class.

    Returns:
        {"boxes": largest difference of a coordinate in pixels, "boxes_relative": the same over stock's largest coordinate,
        "scores": largest difference over stock's largest score, "masks": share of mask pixels that differ, "unmatched": how
        many have no partner, of both, "equal": whether none is, and boxes and scores are within 1e-4}.
    """
    rows = [_of_image(a, b) for a, b in zip(stock, ours, strict=True)]
    boxes, scores, extent, most, pixels, area = (
        list(column) for column in zip(*(row[:6] for row in rows), strict=True)
    )
    unmatched = sum(row[6] for row in rows)
    relative, score = max(boxes) / max(*extent, 1.0), max(scores) / max(*most, 1e-9)
    equal = unmatched == 0 and max(relative, score) <= TOLERANCE
    return {
        "boxes": max(boxes),
        "boxes_relative": relative,
        "scores": score,
        "masks": sum(pixels) / max(sum(area), 1),
        "unmatched": unmatched,
        "equal": equal,
    }


def _of_image(a: Instances, b: Instances) -> tuple[float, float, float, float, int, int, int]:
    """Largest differences of boxes and scores, stock's largest of both, pixels that differ, pixels, unmatched."""
    boxes, others = (x.pred_boxes.tensor.float() for x in (a, b))
    extent = boxes.abs().max().item() if len(a) else 0.0
    most = a.scores.max().item() if len(a) else 0.0
    if not len(a) or not len(b):
        return 0.0, 0.0, extent, most, 0, 0, len(a) + len(b)
    apart = (boxes[:, None] - others[None]).abs().amax(dim=2)
    apart[a.pred_classes[:, None] != b.pred_classes[None]] = torch.inf
    distance, partner = apart.min(dim=1)
    found = distance < _SAME
    if not found.any():
        return 0.0, 0.0, extent, most, 0, 0, len(a) + len(b)
    partner = partner[found]
    scores = (a.scores[found].float() - b.scores[partner].float()).abs().max().item()
    unmatched = len(a) + len(b) - len(partner) - len(partner.unique())
    pixels = area = 0
    if a.has("pred_masks"):
        masks = a.pred_masks[found]
        pixels, area = int((masks != b.pred_masks[partner]).sum()), masks.numel()
    return distance[found].max().item(), scores, extent, most, pixels, area, unmatched
