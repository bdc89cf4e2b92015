"""Mask targets that are computed on the device, from polygons too."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.layers import ROIAlign
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import Tensor

from .transfer import to_device

_MOST_CROSSINGS = 2**22  # edges times columns at once: 32 MiB of float64
_SCALE = 5  # COCO's rasterization rounds polygons to 1/5 of a pixel


@dataclass(frozen=True)
class Polygons:
    """The polygons of all objects of a batch, padded.

    Attributes:
        edges: (I, E, 4), x0, y0, x1, y1 in pixels, float64. An edge of the padding has no length.
        polygon: (I, E), the number of the polygon of its object that an edge belongs to.
        most: the largest number of polygons of an object.
        first: for each image, the index of its first object.
    """

    edges: Tensor
    polygon: Tensor
    most: int
    first: Sequence[int]


def pack_polygons(masks: Sequence[PolygonMasks | None], device: torch.device) -> Polygons:
    """Pack the polygons of each image of a batch; None for an image without objects."""
    objects = [polygons for of_image in masks if of_image is not None for polygons in of_image.polygons]
    counts = [0 if of_image is None else len(of_image) for of_image in masks]
    lengths = [sum(len(polygon) for polygon in polygons) // 2 for polygons in objects]
    edges = np.zeros((max(1, len(objects)), max([1, *lengths]), 4))
    number = np.zeros(edges.shape[:2], dtype=np.int64)
    for index, polygons in enumerate(objects):
        start = 0
        for which, polygon in enumerate(polygons):
            points = polygon.reshape(-1, 2)
            end = start + len(points)
            edges[index, start:end, :2], edges[index, start:end, 2:] = points, np.roll(points, -1, axis=0)
            number[index, start:end] = which
            start = end
    return Polygons(
        to_device(torch.from_numpy(edges), device),
        to_device(torch.from_numpy(number), device),
        max([1, *map(len, objects)]),
        [sum(counts[:image]) for image in range(len(counts))],
    )


class SampledMasks:
    """The masks of samples: the ground truth of the batch, and the index of the object of each sample.

    Args:
        source: the polygons of all images, or the bit masks of this image; None if no image has masks.
        index: (S), the index of an object of this image.
        image: the number of this image in the batch.
    """

    def __init__(self, source: Polygons | BitMasks | None, index: Tensor, image: int):
        self.source, self.index, self.image = source, index, image

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item) -> "SampledMasks":
        return SampledMasks(self.source, self.index[item], self.image)


def sample_masks(instances: list[Instances], index: Tensor) -> list[SampledMasks]:
    """Return the masks of the samples of each image.

    Args:
        instances: the ground truth of N images, with or without masks.
        index: (N, S), the object that each sample matches.
    """
    masks = [image.gt_masks if image.has("gt_masks") else None for image in instances]
    sources: Sequence = masks
    if any(isinstance(of_image, PolygonMasks) for of_image in masks):
        sources = [pack_polygons(masks, index.device)] * len(masks)
    return [SampledMasks(source, index[image], image) for image, source in enumerate(sources)]


def mask_targets(instances: list[Instances], size: int) -> Tensor:
    """Return the mask within each proposal box, as bool (R, size, size).

    Args:
        instances: one per image, with ``proposal_boxes`` and, in ``gt_masks``, :class:`SampledMasks`.
    """
    boxes = [image.proposal_boxes.tensor for image in instances]
    masks = [image.gt_masks for image in instances]
    source = masks[0].source
    if isinstance(source, Polygons):
        index = torch.cat([of_image.index + source.first[of_image.image] for of_image in masks])
        return rasterize(source, index.clamp(max=len(source.edges) - 1), torch.cat(boxes), size)
    return torch.cat([_crop(of_image, box, size) for of_image, box in zip(masks, boxes, strict=True)])


def _crop(masks: SampledMasks, boxes: Tensor, size: int) -> Tensor:
    """Crop bit masks as detectron2 does, without a copy of the mask for each box."""
    source = masks.source
    if not isinstance(source, BitMasks) or not len(source):
        return boxes.new_zeros(len(boxes), size, size, dtype=torch.bool)
    rois = torch.cat([masks.index[:, None].to(boxes.dtype), boxes], dim=1)
    return ROIAlign((size, size), 1.0, 0, aligned=True)(source.tensor[:, None].float(), rois)[:, 0] >= 0.5


def rasterize(polygons: Polygons, index: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Rasterize polygons within boxes by the rule of COCO's API, with equal results.

    Args:
        index: (R), the object of each box.
        boxes: (R, 4) in pixels.

    Returns:
        bool (R, size, size).
    """
    count = max(1, _MOST_CROSSINGS // (polygons.edges.shape[1] * size))
    parts = zip(index.split(count), boxes.split(count), strict=True)
    masks = [_rasterize(polygons.edges[i], polygons.polygon[i], polygons.most, box, size) for i, box in parts]
    return torch.cat(masks)


def _rasterize(edges: Tensor, polygon: Tensor, most: int, boxes: Tensor, size: int) -> Tensor:
    """Fill by counting: a pixel is inside a polygon if an odd number of edges cross its column above it."""
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0.1)
    scale = torch.full_like(sides, size) / sides  # size / sides is size * (1 / sides), rounded twice
    edges = (edges - boxes[:, None, :2].double().repeat(1, 1, 2)) * scale[:, None].double().repeat(1, 1, 2)
    crosses, row = _crossings((edges * _SCALE + 0.5).trunc(), size)
    count = torch.zeros(len(edges), most, size, size + 1, dtype=torch.int32, device=edges.device)
    box = torch.arange(len(edges), device=edges.device)[:, None, None]
    column = torch.arange(size, device=edges.device)
    place = ((box * most + polygon[:, :, None]) * size + column) * (size + 1) + row
    count.view(-1).scatter_add_(0, place.view(-1), crosses.view(-1).int())
    inside = count[..., :size].cumsum(dim=3) % 2 == 1
    return inside.any(dim=1).transpose(1, 2)


def _crossings(edges: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Find where edges cross the columns of a mask.

    COCO's API draws an edge as points with integer coordinates, one for each step along its longer axis,
    at 5 times the resolution. It counts a crossing of column c where the line steps between 5c + 2 and
    5c + 3. Here the step is computed, with the same float64 operations.

    Args:
        edges: (R, E, 4), integers as float64, at 5 times the resolution of the mask.
        size: the height and width of the mask.

    Returns:
        whether each edge crosses the middle of each column, and from which row on the pixels are below
        it (0 to ``size``; 0 without a crossing), both (R, E, size).
    """
    column = torch.arange(size, dtype=edges.dtype, device=edges.device) * _SCALE + _SCALE // 2
    x0, y0, x1, y1 = edges[..., None].unbind(dim=2)
    crosses = (torch.minimum(x0, x1) <= column) & (torch.maximum(x0, x1) > column)
    flat = (x1 - x0).abs() >= (y1 - y0).abs()
    swap = torch.where(flat, x0 > x1, y0 > y1)
    (x0, x1), (y0, y1) = ((torch.where(swap, b, a), torch.where(swap, a, b)) for a, b in ((x0, x1), (y0, y1)))
    slope = torch.where(flat, (y1 - y0) / (x1 - x0), (x1 - x0) / (y1 - y0))
    before, after = ((y0 + slope * (x - x0) + 0.5).trunc() for x in (column, column + 1))
    row = torch.where(flat, torch.minimum(before, after), y0 + _steps(x0, slope, column) - 1)
    row = ((row + 0.5) / _SCALE - 0.5).clamp(0, size).ceil()
    return crosses, torch.where(crosses, row, 0).long()


def _steps(x0: Tensor, slope: Tensor, column: Tensor) -> Tensor:
    """Return the number of steps in y after which a steep line, from x0 on, has crossed a column."""

    def crossed(steps: Tensor) -> Tensor:
        x = (x0 + slope * steps + 0.5).trunc()
        return torch.where(slope > 0, x > column, x <= column)

    steps = ((column + 0.5 - x0) / slope).ceil()
    steps = steps + ~crossed(steps)  # one step more or less, where the line hits the middle or the division rounds
    return steps - crossed(steps - 1).to(steps.dtype)
