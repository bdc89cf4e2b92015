"""Synthetic images, objects and proposals that give random weights a realistic workload."""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances, PolygonMasks
from torch import nn

_OBJECTS = 8  # per image; COCO has about 7.3
# Standard deviations of the outputs: logits, and box deltas in the units of the layer.
_OUTPUT_STDS = {"objectness_logits": 2.0, "anchor_deltas": 0.3, "cls_score": 2.0, "bbox_pred": 1.0}
_BACKGROUND_LOGIT = 5.0  # leaves about one class per RoI above the score threshold


def synthetic_images(count: int, size: tuple[int, int], classes: int, device: str, seed: int) -> list[dict]:
    """Return ``count`` inputs for a model, each with an image of blobs and noise.

    Returns:
        A list of dicts, one per image:
            "image": (3, H, W) float tensor with values from 0 to 255, on ``device``.
            "instances": 8 objects with boxes, classes and rectangular masks, on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    images = []
    for _ in range(count):
        coarse = torch.randn(1, 3, height // 16 + 2, width // 16 + 2, generator=generator)
        blobs = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)[0]
        noise = torch.randn(3, height, width, generator=generator)
        image = (115 + 50 * blobs + 10 * noise).clamp(0, 255)
        images.append({"image": image.to(device), "instances": _random_objects(size, classes, generator)})
    return images


def _random_objects(size: tuple[int, int], classes: int, generator: torch.Generator) -> Instances:
    boxes = _random_boxes(_OBJECTS, size, generator)
    outlines = [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes.tolist()]
    instances = Instances(size)
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.randint(classes, (_OBJECTS,), generator=generator)
    instances.gt_masks = PolygonMasks(outlines)
    return instances


def _random_boxes(count: int, size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Return (N, 4) boxes x0, y0, x1, y1; sides are 5 to 50 % of the image, and at least 8 pixels."""
    image = torch.tensor([size[1], size[0]], dtype=torch.float)
    sides = (image * (0.05 + 0.45 * torch.rand(count, 2, generator=generator))).clamp(min=8)
    corner = torch.rand(count, 2, generator=generator) * (image - sides)
    return torch.cat([corner, corner + sides], dim=1)


def synthetic_proposals(image: dict, count: int, device: str, seed: int) -> Instances:
    """Return ``count`` proposals for an image of :func:`synthetic_images`.

    Half of them lie near objects, so that a training step can sample its full number of foreground RoIs.
    """
    generator = torch.Generator().manual_seed(seed)
    objects = image["instances"]
    near = objects.gt_boxes.tensor[torch.randint(len(objects), (count // 2,), generator=generator)]
    sides = (near[:, 2:] - near[:, :2]).repeat(1, 2)
    near = near + 0.04 * sides * torch.randn(near.shape, generator=generator)
    boxes = Boxes(torch.cat([near, _random_boxes(count - len(near), objects.image_size, generator)]))
    boxes.clip(objects.image_size)
    proposals = Instances(objects.image_size, proposal_boxes=boxes)
    proposals.objectness_logits = torch.randn(count, generator=generator)
    return proposals.to(device)


@torch.no_grad()
def rescale_outputs(model: nn.Module, images: list[dict]) -> None:
    """Scale and shift the last layers of RPN and box head in place, so that their outputs vary.

    On ``images``, each output channel gets mean 0 and the standard deviation of ``_OUTPUT_STDS``; the
    background logit is then raised by 5. A freshly initialized model gives every class the same score, and
    detects almost nothing.
    """
    detector: Any = model
    rpn_head, predictor = detector.proposal_generator.rpn_head, detector.roi_heads.box_predictor
    model.eval()
    # The RPN comes first, because the box predictor's outputs depend on the proposals.
    _rescale(model, images, {name: getattr(rpn_head, name) for name in ("objectness_logits", "anchor_deltas")})
    _rescale(model, images, {name: getattr(predictor, name) for name in ("cls_score", "bbox_pred")})
    predictor.cls_score.bias[-1] += _BACKGROUND_LOGIT


def _rescale(model: nn.Module, images: list[dict], layers: dict[str, Any]) -> None:
    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    hooks = [
        layer.register_forward_hook(
            lambda _, inputs, output, name=name: outputs[name].append(output.movedim(1, -1).flatten(0, -2))
        )
        for name, layer in layers.items()
    ]
    try:
        model([{"image": image["image"]} for image in images])
    finally:
        for hook in hooks:
            hook.remove()
    for name, layer in layers.items():
        std, mean = torch.std_mean(torch.cat(outputs[name]).float(), dim=0)
        scale = _OUTPUT_STDS[name] / std.clamp(min=1e-6)
        layer.bias.copy_((layer.bias - mean) * scale)
        layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
