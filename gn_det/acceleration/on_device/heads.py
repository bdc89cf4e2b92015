"""RoI heads whose samples have a fixed number, and their losses."""

import torch
import torch.nn.functional as F
from detectron2.modeling.roi_heads import (
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    Res5ROIHeads,
    ROIHeads,
    StandardROIHeads,
)
from detectron2.structures import Boxes, ImageList, Instances
from fvcore.nn import smooth_l1_loss
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...modeling.roi_heads import MaskRCNNConvUpsampleGNHead, Res5GNROIHeads
from .masks import mask_targets, sample_masks
from .matching import box_deltas, box_iou, match, pad_targets, sample, take
from .scalars import put_scalar


class _FixedSamples(ROIHeads):
    """ROIHeads with fixed numbers. Each image has S samples: positives, then negatives, then empty slots of class -1."""

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """Return S samples per image with ``proposal_boxes``, ``gt_boxes``, ``gt_classes`` and ``gt_masks``.

        Proposals with the objectness logit -inf are not sampled.
        """
        truth = pad_targets(targets)
        boxes = pad_sequence([image.proposal_boxes.tensor for image in proposals], batch_first=True)
        logits = [image.objectness_logits for image in proposals]
        valid = pad_sequence(logits, batch_first=True, padding_value=-torch.inf) > -torch.inf
        if self.proposal_append_gt:
            boxes, valid = torch.cat([boxes, truth.boxes], dim=1), torch.cat([valid, truth.valid], dim=1)
        matched, label = match(self.proposal_matcher, box_iou(truth.boxes, boxes), truth.valid)
        positive, negative = (label == 1) & valid, (label == 0) & valid
        keys = torch.rand(label.shape, device=label.device)
        index, label = sample(positive, negative, self.batch_size_per_image, self.positive_fraction, keys)
        matched = matched.gather(1, index)
        background = torch.where(label == 0, self.num_classes, -1)
        classes = torch.where(label == 1, truth.classes.gather(1, matched), background)
        put_scalar("roi_head/num_fg_samples", (label == 1).sum() / len(label))
        put_scalar("roi_head/num_bg_samples", (label == 0).sum() / len(label))
        masks = sample_masks(targets, matched)
        boxes, gt_boxes = take(boxes, index), take(truth.boxes, matched)
        return [
            Instances(
                target.image_size,
                proposal_boxes=Boxes(boxes[image]),
                gt_boxes=Boxes(gt_boxes[image]),
                gt_classes=classes[image],
                gt_masks=masks[image],
            )
            for image, target in enumerate(targets)
        ]

    def positive_slots(self, samples: list[Instances]) -> list[Instances]:
        """Return the slots that can be positive. Those that are not have the class -1."""
        slots = [image[: int(self.batch_size_per_image * self.positive_fraction)] for image in samples]
        for image in slots:
            image.gt_classes = image.gt_classes.masked_fill(image.gt_classes == self.num_classes, -1)
        return slots


class OnDeviceROIHeads(_FixedSamples, StandardROIHeads):
    """detectron2's StandardROIHeads with box and mask head, with fixed sizes in training."""

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]):
        if not self.training or not self.mask_on:
            return super()._forward_mask(features, instances)
        slots = self.positive_slots(instances)
        x = self.mask_pooler([features[name] for name in self.mask_in_features], [i.proposal_boxes for i in slots])
        return self.mask_head(x, slots)


class OnDeviceRes5ROIHeads(_FixedSamples, Res5ROIHeads):
    """detectron2's Res5ROIHeads, with fixed sizes in training."""

    def forward(self, images: ImageList, features: dict[str, Tensor], proposals: list[Instances], targets=None):
        """Return no detections and the losses in training; same as detectron2's method otherwise."""
        if not self.training:
            return super().forward(images, features, proposals, targets)
        samples = self.label_and_sample_proposals(proposals, targets)
        maps = [features[name] for name in self.in_features]
        x = self._shared_roi_transform(maps, [image.proposal_boxes for image in samples])
        losses = self.box_predictor.losses(self.box_predictor(x.mean(dim=[2, 3])), samples)
        if self.mask_on:
            slots = self.positive_slots(samples)
            by_image = zip(x.split([len(image) for image in samples]), slots, strict=True)
            losses |= self.mask_head(torch.cat([of_image[: len(image)] for of_image, image in by_image]), slots)
        return [], losses


class OnDeviceRes5GNROIHeads(OnDeviceRes5ROIHeads, Res5GNROIHeads):
    """gn_det's Res5GNROIHeads, with fixed sizes in training."""


class OnDeviceOutputLayers(FastRCNNOutputLayers):
    """detectron2's FastRCNNOutputLayers, with samples of class -1 left out of the losses."""

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """Return the losses of the scores (R, K + 1) and deltas (R, 4K or 4) of the samples."""
        scores, deltas = predictions
        classes = torch.cat([image.gt_classes for image in proposals])
        boxes = torch.cat([image.proposal_boxes.tensor for image in proposals])
        gt_boxes = torch.cat([image.gt_boxes.tensor for image in proposals])
        self._put_accuracy(scores, classes)
        positive = (classes >= 0) & (classes < self.num_classes)
        number = (classes >= 0).sum().clamp(min=1)
        deltas = deltas.view(len(deltas), -1, 4)
        row = torch.where(positive, classes, 0) if deltas.shape[1] > 1 else torch.zeros_like(classes)
        target = box_deltas(self.box2box_transform, boxes, gt_boxes, positive)
        location = smooth_l1_loss(take(deltas, row[:, None])[:, 0], target, self.smooth_l1_beta, "none")
        losses = {
            "loss_cls": F.cross_entropy(scores, classes, ignore_index=-1, reduction="sum") / number,
            "loss_box_reg": torch.where(positive[:, None], location, 0).sum() / number,
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def _put_accuracy(self, scores: Tensor, classes: Tensor) -> None:
        predicted = scores.argmax(dim=1)
        positive = (classes >= 0) & (classes < self.num_classes)
        missed, right = positive & (predicted == self.num_classes), predicted == classes
        put_scalar("fast_rcnn/cls_accuracy", right.sum() / (classes >= 0).sum())
        put_scalar("fast_rcnn/fg_cls_accuracy", (right & positive).sum() / positive.sum())
        put_scalar("fast_rcnn/false_negative", missed.sum() / positive.sum())


class OnDeviceMaskHead(MaskRCNNConvUpsampleHead):
    """detectron2's mask head, whose loss leaves out slots of class -1."""

    def forward(self, x: Tensor, instances: list[Instances]):
        """Return the loss of the mask logits in training; same as detectron2's method otherwise."""
        if not self.training:
            return super().forward(x, instances)
        return {"loss_mask": mask_loss(self.layers(x), instances) * self.loss_weight}


class OnDeviceGNMaskHead(OnDeviceMaskHead, MaskRCNNConvUpsampleGNHead):
    """gn_det's mask head, whose loss leaves out slots of class -1."""


def mask_loss(logits: Tensor, instances: list[Instances]) -> Tensor:
    """Return the mean binary cross-entropy of the mask logits (R, K or 1, M, M) of slots, without class -1."""
    classes = torch.cat([image.gt_classes for image in instances])
    target = mask_targets(instances, logits.shape[2])
    row = classes.clamp(min=0) if logits.shape[1] > 1 else torch.zeros_like(classes)
    logits = take(logits.flatten(2), row[:, None])[:, 0].view(target.shape)
    valid = (classes >= 0)[:, None, None].expand_as(target)
    _put_mask_accuracy(logits > 0, target, valid)
    loss = F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none")
    return torch.where(valid, loss, 0).sum() / valid.sum().clamp(min=1)


def _put_mask_accuracy(predicted: Tensor, target: Tensor, valid: Tensor) -> None:
    wrong = (predicted != target) & valid
    number, positives = valid.sum(), (target & valid).sum()
    empty = torch.where(number > 0, 0, torch.nan)  # detectron2 logs nothing then
    put_scalar("mask_rcnn/accuracy", 1 - wrong.sum() / number)
    put_scalar("mask_rcnn/false_positive", (wrong & ~target).sum() / (number - positives).clamp(min=1) + empty)
    put_scalar("mask_rcnn/false_negative", (wrong & target).sum() / positives.clamp(min=1) + empty)
