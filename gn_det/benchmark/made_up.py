"""Images, objects, proposals and outputs, such that a detector with random weights has the work that one usually has."""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances, PolygonMasks
from torch import nn

_OBJECTS = 8  # an image, about COCO's 7.3
# Standard deviations of outputs: logits of objectness and classes, and deltas of boxes in the units of the layer.
_SPREADS = {"objectness_logits": 2.0, "anchor_deltas": 0.3, "cls_score": 2.0, "bbox_pred": 1.0}
_BACKGROUND = 5.0  # its logit, so that about one class an RoI is above the score threshold


def made_up_images(count: int, size: tuple[int, int], classes: int, device: str, seed: int) -> list[dict]:
    """``count`` inputs of a model: an image (3, H, W) of blobs and noise, 0 to 255, and "instances", 8 objects each."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    images = []
    for _ in range(count):
        coarse = torch.randn(1, 3, height // 16 + 2, width // 16 + 2, generator=generator)
        blobs = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)[0]
        noise = torch.randn(3, height, width, generator=generator)
        image = (115 + 50 * blobs + 10 * noise).clamp(0, 255)
        images.append({"image": image.to(device), "instances": _objects(size, classes, generator)})
    return images


def _objects(size: tuple[int, int], classes: int, generator: torch.Generator) -> Instances:
    boxes = _anywhere(_OBJECTS, size, generator)
    outlines = [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes.tolist()]
    instances = Instances(size)
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.randint(classes, (_OBJECTS,), generator=generator)
    instances.gt_masks = PolygonMasks(outlines)
    return instances


def _anywhere(number: int, size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """(N, 4) corners; sides from 5 to 50 % of the image's, at least 8 pixels."""
    whole = torch.tensor([size[1], size[0]], dtype=torch.float)
    sides = (whole * (0.05 + 0.45 * torch.rand(number, 2, generator=generator))).clamp(min=8)
    corner = torch.rand(number, 2, generator=generator) * (whole - sides)
    return torch.cat([corner, corner + sides], dim=1)


def made_up_proposals(image: dict, number: int, device: str, seed: int) -> Instances:
    """Proposals for an image, half of them about its objects, so that a training step finds all the RoIs that it samples."""
    generator = torch.Generator().manual_seed(seed)
    objects = image["instances"]
    near = objects.gt_boxes.tensor[torch.randint(len(objects), (number // 2,), generator=generator)]
    sides = (near[:, 2:] - near[:, :2]).repeat(1, 2)
    near = near + 0.04 * sides * torch.randn(near.shape, generator=generator)
    boxes = Boxes(torch.cat([near, _anywhere(number - len(near), objects.image_size, generator)]))
    boxes.clip(objects.image_size)
    proposals = Instances(objects.image_size, proposal_boxes=boxes)
    proposals.objectness_logits = torch.randn(number, generator=generator)
    return proposals.to(device)


@torch.no_grad()
def spread_outputs(model: nn.Module, images: list[dict]) -> None:
    """Scale and shift the last layers of RPN and box head, so that on ``images`` each output has mean 0 and a spread.

    As it is initialised, a model gives every class the same score, and detects next to nothing.
    """
    whole: Any = model
    layers = {name: getattr(whole.proposal_generator.rpn_head, name) for name in ("objectness_logits", "anchor_deltas")}
    predictor = whole.roi_heads.box_predictor
    model.eval()
    _spread(model, images, layers)  # first the proposals, on which the others then are predicted
    _spread(model, images, {name: getattr(predictor, name) for name in ("cls_score", "bbox_pred")})
    predictor.cls_score.bias[-1] += _BACKGROUND


def _spread(model: nn.Module, images: list[dict], layers: dict[str, Any]) -> None:
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
        scale = _SPREADS[name] / std.clamp(min=1e-6)
        layer.bias.copy_((layer.bias - mean) * scale)
        layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
