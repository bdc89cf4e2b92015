"""RPN whose samples and proposals have fixed numbers."""

import torch
import torch.nn.functional as F
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances
from fvcore.nn import smooth_l1_loss
from torch import Tensor
from torchvision.ops import nms

from .matching import box_deltas, box_iou, match, pad_targets, sample, take
from .scalars import put_scalar
from .transfer import to_device

_MOST_PAIRS = 2**25  # pairs of object and anchor that are matched at once: 128 MiB of float32
_MOST_BOXES = 25_000  # boxes in one NMS, whose time is quadratic; torchvision's limit on CUDA


class OnDeviceAnchorGenerator(DefaultAnchorGenerator):
    """detectron2's DefaultAnchorGenerator, which computes the grid on the device."""

    def _grid_anchors(self, grid_sizes: list[tuple[int, int]]) -> list[Tensor]:
        anchors = []
        for (height, width), stride, cell in zip(grid_sizes, self.strides, self.cell_anchors, strict=True):
            x, y = (
                torch.arange(self.offset * stride, n * stride, stride, dtype=torch.float32, device=cell.device)
                for n in (width, height)
            )
            shifts = torch.stack([x.repeat(len(y)), y.repeat_interleave(len(x))], dim=1).repeat(1, 2)
            anchors.append((shifts[:, None] + cell).view(-1, 4))
        return anchors


class OnDeviceRPN(RPN):
    """detectron2's RPN with fixed numbers of samples and, in training, of proposals.

    Empty proposals, of which there are some if NMS leaves too few, have the objectness logit -inf.
    """

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Sample anchors of each image.

        Returns:
            the labels of the samples (N, S): 1, 0, or -1 in empty slots; then their indices (N, S) among
            all anchors of an image and the boxes (N, S, 4) that they match. :meth:`losses` takes both.
        """
        boxes = Boxes.cat(anchors)
        targets = pad_targets(gt_instances)
        images = max(1, _MOST_PAIRS // (targets.valid.shape[1] * len(boxes)))
        parts = [
            match(self.anchor_matcher, box_iou(gt, boxes.tensor[None]), valid)
            for gt, valid in zip(targets.boxes.split(images), targets.valid.split(images), strict=True)
        ]
        matched, label = (torch.cat(part) for part in zip(*parts, strict=True))
        if self.anchor_boundary_thresh >= 0:
            inside = [boxes.inside_box(image.image_size, self.anchor_boundary_thresh) for image in gt_instances]
            label = label.masked_fill(~torch.stack(inside), -1)
        keys = torch.rand(label.shape, device=label.device)
        index, label = sample(label == 1, label == 0, self.batch_size_per_image, self.positive_fraction, keys)
        return label, (index, take(targets.boxes, matched.gather(1, index)))

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: Tensor,
        pred_anchor_deltas: list[Tensor],
        gt_boxes: tuple[Tensor, Tensor],
    ) -> dict[str, Tensor]:
        """Return the losses of detectron2's RPN for the samples of :meth:`label_and_sample_anchors`.

        The loss is NaN if any prediction is infinite or NaN, where detectron2 raises an error.
        """
        index, boxes = gt_boxes
        positive, images = gt_labels == 1, len(gt_labels)
        put_scalar("rpn/num_pos_anchors", positive.sum() / images)
        put_scalar("rpn/num_neg_anchors", (gt_labels == 0).sum() / images)
        all_logits, all_deltas = torch.cat(pred_objectness_logits, dim=1), torch.cat(pred_anchor_deltas, dim=1)
        target = box_deltas(self.box2box_transform, Boxes.cat(anchors).tensor[index], boxes, positive)
        location = smooth_l1_loss(take(all_deltas, index), target, self.smooth_l1_beta, "none")
        logits = all_logits.gather(1, index)
        objectness = F.binary_cross_entropy_with_logits(logits, positive.float(), reduction="none")
        finite = all_logits.isfinite().all() & all_deltas.isfinite().all()
        sums = {
            "loss_rpn_cls": torch.where(gt_labels >= 0, objectness, 0).sum(),
            "loss_rpn_loc": torch.where(positive[..., None], location, 0).sum(),
        }
        normalizer = self.batch_size_per_image * images
        return {
            name: torch.where(finite, value / normalizer, torch.nan) * self.loss_weight.get(name, 1.0)
            for name, value in sums.items()
        }

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Return the proposals of each image; in training, the same number for all, some of them empty."""
        if not self.training:
            return super().predict_proposals(anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes)
        boxes, scores, levels = self._decode_best(anchors, pred_objectness_logits, pred_anchor_deltas)
        ends = to_device(torch.tensor([[w, h, w, h] for h, w in image_sizes], dtype=boxes.dtype), boxes.device)
        finite = boxes.isfinite().all(dim=2) & scores.isfinite()
        boxes = torch.minimum(boxes.clamp(min=0), ends[:, None])
        sides = boxes[..., 2:] - boxes[..., :2]
        usable = finite & (sides > self.min_box_size).all(dim=2)
        boxes = torch.where(usable[..., None], boxes, 0)
        scores = scores.masked_fill(~usable, -torch.inf)
        span = 1 + max(max(size) for size in image_sizes)
        scores = suppress(boxes, scores, levels, self.nms_thresh, span)
        scores, index = scores.sort(dim=1, descending=True, stable=True)
        number = self.post_nms_topk[True]
        boxes, scores = take(boxes, index[:, :number]), scores[:, :number]
        return [
            Instances(size, proposal_boxes=Boxes(b), objectness_logits=s)
            for size, b, s in zip(image_sizes, boxes, scores, strict=True)
        ]

    def _decode_best(
        self, anchors: list[Boxes], logits: list[Tensor], deltas: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best anchors of all levels: boxes (N, M, 4), scores (N, M) and levels (M)."""
        found = []
        for level, (of_level, score, delta) in enumerate(zip(anchors, logits, deltas, strict=True)):
            top, index = score.topk(min(self.pre_nms_topk[True], score.shape[1]), dim=1)
            source = of_level.tensor[index]
            boxes = self.box2box_transform.apply_deltas(take(delta, index).flatten(0, 1), source.flatten(0, 1))
            found.append((boxes.view(source.shape), top.float(), torch.full_like(index[0], level)))
        boxes, scores, levels = zip(*found, strict=True)
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=1), torch.cat(levels)


def suppress(boxes: Tensor, scores: Tensor, levels: Tensor, threshold: float, span: float) -> Tensor:
    """Run NMS in each level of each image, and give the suppressed boxes the score -inf.

    torchvision's NMS waits for the device once per call. So all levels of as many images as possible go
    into one call, at coordinates at which they do not overlap.

    Args:
        boxes: (N, M, 4), at least 0 and below ``span``.
        scores: (N, M).
        levels: (M).

    Returns:
        the scores (N, M).
    """
    images, number = scores.shape
    group = torch.arange(images, device=levels.device)[:, None] * (levels.max() + 1) + levels
    batch = max(1, _MOST_BOXES // number)
    kept = []
    for part, score, shift in zip(boxes.split(batch), scores.split(batch), group.split(batch), strict=True):
        flat = score.flatten()
        keep = nms((part + (shift - shift[0, 0])[..., None] * span).flatten(0, 1), flat, threshold)
        kept.append(torch.full_like(flat, -torch.inf).index_copy(0, keep, flat[keep]).view(score.shape))
    return torch.cat(kept)
