"""RoIAlign on a GPU in the dtype and layout of the features, without a list of the RoIs of each level."""

from typing import Any

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor, nn

from ..errors import KernelError
from .rois import levels_of_rois, list_rois


class LevelROIPooler(ROIPooler):
    """detectron2's ROIPooler, which uses :func:`gn_det.ops.roi_align.roi_align_levels` on a GPU."""

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Pool the features of each box.

        Args:
            x: one feature map (N, C, H, W) per level.
            box_lists: the boxes of each of the N images, R in total.

        Returns:
            (R, C, h, w), in channels_last if Triton computes it.
        """
        if not _on_gpu(x[0]) or torch.jit.is_tracing() or torch.jit.is_scripting():
            return super().forward(x, box_lists)
        try:
            return self._pool_levels(x, box_lists)
        except KernelError:  # the launcher has logged it
            return super().forward(x, box_lists)

    def _pool_levels(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        from ..ops.roi_align import roi_align_levels  # Triton is not available on every platform

        rois = list_rois(box_lists)
        if len(x) == 1:
            levels = torch.zeros(len(rois), dtype=torch.int64, device=rois.device)
        else:
            levels = levels_of_rois(self, box_lists)
        first = self.level_poolers[0]
        scales = [pooler.spatial_scale for pooler in self.level_poolers]
        return roi_align_levels(x, rois, levels, self.output_size, scales, first.sampling_ratio, first.aligned)


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def use_level_poolers(model: nn.Module) -> int:
    """Turn each ROIPooler of a built model into a :class:`LevelROIPooler`; return the number of them."""
    changed = 0
    for module in model.modules():
        if type(module) is not ROIPooler:
            continue
        poolers: Any = module.level_poolers
        if all(type(pooler) is ROIAlign for pooler in poolers):
            module.__class__ = LevelROIPooler
            changed += 1
    return changed
