"""Let a model compute for each image of a batch what it computes for the image alone.

detectron2 pads the images of a batch to the size of the largest one. GN then normalizes over the
padding too, convolutions and pooling carry it into the image, the RPN proposes boxes in it, and
RoIAlign interpolates into it. So the detections of an image depend on its neighbors in the batch.
:func:`ignore_padding` changes a built model so that they do not, up to rounding.

The rectangle of an image is its size, rounded up to the size divisibility of the backbone. This is
the size that the batch has if the image is alone. A batch in which all images have the same
rectangle runs as before.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.layers import DeformConv, ModulatedDeformConv
from detectron2.modeling import GeneralizedRCNN, ProposalNetwork
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BasicStem
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ..errors import GNDetError
from ..ops.padding import Extents, attach_extents, clear_padding, current_extents, extents_in_use, extents_of
from .norm import GroupNorm


def ignore_padding(model: nn.Module, in_training: bool = True) -> nn.Module:
    """Make the outputs of a built model independent of the padding, in place.

    Call it once, after the model is built; a second call changes nothing. The statistics of GN, LN
    and IN are then those of each image's rectangle. With another norm, or none, the padding is set to
    zero after each convolution. Parameters and state-dict keys stay, and copies of the model keep the
    change.

    Args:
        model: detectron2's GeneralizedRCNN, ProposalNetwork or RetinaNet with a ResNet, with or
            without FPN.
        in_training: whether to do so in training mode too; False: as detectron2, the padding is part of a
            training image.

    Returns:
        the same model.

    Raises:
        GNDetError: the model is of another kind.
    """
    if hasattr(model, "ignores_padding"):
        return model
    _check(model)
    parts: Any = model
    backbone: Any = parts.backbone
    parts.ignores_padding, parts.ignores_padding_in_training = True, in_training
    parts.preprocess_image = functools.partial(_preprocess, parts.preprocess_image, parts)
    backbone.forward = functools.partial(_run_backbone, backbone.forward)
    _clear_after_layers(backbone)
    for module in model.modules():
        if isinstance(module, ROIPooler):
            module.forward = functools.partial(_pool_each_image, module)
    if getattr(parts, "proposal_generator", None) is not None:
        parts.proposal_generator.forward = functools.partial(_propose_for_each_image, parts.proposal_generator.forward)
    if isinstance(model, RetinaNet):
        _ignore_in_dense_head(parts)
    return model


def _check(model: nn.Module) -> None:
    backbone = getattr(model, "backbone", None)
    body = getattr(backbone, "bottom_up", backbone)
    if not isinstance(model, GeneralizedRCNN | ProposalNetwork | RetinaNet) or not isinstance(body, ResNet):
        raise GNDetError(
            f"The model is a {type(model).__name__} with a {type(body).__name__}; only a GeneralizedRCNN, ProposalNetwork "
            "or RetinaNet with a ResNet can ignore the padding: set MODEL.GN.IGNORE_PADDING to False."
        )


def _preprocess(preprocess: Callable, model: Any, batched_inputs: list[dict]) -> ImageList:
    images = preprocess(batched_inputs)
    if model.training and not model.ignores_padding_in_training:
        return images
    unit = max(model.backbone.size_divisibility, 1)
    sizes = tuple((-(-int(h) // unit) * unit, -(-int(w) // unit) * unit) for h, w in images.image_sizes)
    padded = (int(images.tensor.shape[-2]), int(images.tensor.shape[-1]))
    if any(size != padded for size in sizes):
        attach_extents(images.tensor, Extents(padded, sizes))
    return images


def _run_backbone(forward: Callable, images: Tensor) -> Any:
    extents = extents_of(images)
    if extents is None:
        return forward(images)
    with extents_in_use(extents):
        features = forward(images)
    for feature in features.values() if isinstance(features, dict) else [features]:
        attach_extents(feature, extents)
    return features


def _clear_after_layers(module: nn.Module) -> None:
    """Let GN skip the padding, and set the padding to zero after each other layer that writes into it."""
    for layer in list(module.modules()):
        if type(layer) is nn.GroupNorm:
            layer.__class__ = GroupNorm
        has_gn = isinstance(getattr(layer, "norm", None), nn.GroupNorm)
        is_conv = isinstance(layer, nn.Conv2d | DeformConv | ModulatedDeformConv)
        if (is_conv and not has_gn) or isinstance(layer, BasicStem | nn.MaxPool2d):
            layer.register_forward_hook(_clear_output)


def _clear_output(layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return clear_padding(output)


def _crop(features: Sequence[Tensor], image: int) -> list[Tensor]:
    """Return the rectangle of one image in each feature map, as (1, C, h, w)."""
    crops = []
    for feature in features:
        extents: Any = extents_of(feature)
        h, w = extents.rectangles(feature)[image]
        crops.append(feature[image : image + 1, :, :h, :w])
    return crops


def _pool_each_image(pooler: ROIPooler, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
    """Crop the maps, because RoIAlign interpolates between the last pixel of a map and the padding."""
    forward = functools.partial(type(pooler).forward, pooler)  # use_row_poolers may have changed the class
    if extents_of(x[0]) is None:
        return forward(x, box_lists)
    return torch.cat([forward(_crop(x, image), [boxes]) for image, boxes in enumerate(box_lists)])


def _propose_for_each_image(
    forward: Callable, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances] | None = None
) -> tuple[list[Instances], dict[str, Tensor]]:
    """Run the RPN on the rectangle of each image. Its losses are means over images."""
    if extents_of(next(iter(features.values()))) is None:
        return forward(images, features, gt_instances)
    proposals: list[Instances] = []
    losses: list[dict[str, Tensor]] = []
    for image, size in enumerate(images.image_sizes):
        crops = dict(zip(features, _crop(list(features.values()), image), strict=True))
        gt = None if gt_instances is None else gt_instances[image : image + 1]
        proposed, loss = forward(ImageList(images.tensor[image : image + 1], [size]), crops, gt)
        proposals += proposed
        losses.append(loss)
    return proposals, {name: torch.stack([loss[name] for loss in losses]).mean() for name in losses[0]}


def _ignore_in_dense_head(model: Any) -> None:
    """Change RetinaNet, whose head predicts at each pixel of the feature maps."""
    _clear_after_layers(model.head)
    model.head.forward = functools.partial(_with_extents, model.head.forward, 0)
    model.forward_inference = functools.partial(_detect_in_each_image, model.forward_inference)
    model.forward_training = functools.partial(_with_extents, model.forward_training, 1)
    model.label_anchors = functools.partial(_label_anchors, model.label_anchors, model.anchor_generator)


def _detect_in_each_image(
    forward: Callable, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
) -> list[Instances]:
    if extents_of(features[0]) is None:
        return forward(images, features, predictions)
    detected: list[Instances] = []
    for image, size in enumerate(images.image_sizes):
        crops = _crop(features, image)
        cropped = [
            [p[image : image + 1, :, : c.shape[2], : c.shape[3]] for p, c in zip(kind, crops, strict=True)]
            for kind in predictions
        ]
        detected += forward(ImageList(images.tensor[image : image + 1], [size]), crops, cropped)
    return detected


def _with_extents(forward: Callable, position: int, *args: Any) -> Any:
    """Call a function within the extents of the feature maps, which are its argument at a position."""
    with extents_in_use(extents_of(args[position][0])):
        return forward(*args)


def _label_anchors(
    label: Callable, generator: Any, anchors: list[Boxes], gt_instances: list[Instances]
) -> tuple[list[Tensor], list[Tensor]]:
    """Give the anchors in the padding the label -1, by which detectron2 leaves them out of the losses."""
    labels, boxes = label(anchors, gt_instances)
    extents = current_extents()
    if extents is None:
        return labels, boxes
    cells = [(a.get_centers() / s - generator.offset).round() for a, s in zip(anchors, generator.strides, strict=True)]
    for image, label_of_anchors in enumerate(labels):
        ends = [extents.at_stride(stride)[image] for stride in generator.strides]
        outside = [(cell[:, 0] >= w) | (cell[:, 1] >= h) for cell, (h, w) in zip(cells, ends, strict=True)]
        labels[image] = label_of_anchors.masked_fill(torch.cat(outside), -1)
    return labels, boxes
