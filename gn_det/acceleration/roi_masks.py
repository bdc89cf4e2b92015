"""Masks as the model predicts them, a small square per box, instead of bitmaps of the size of the image.

detectron2 pastes each mask into a bitmap of the size of the image. Where only run lengths are needed,
or the masks have to leave the GPU, the small masks are enough: 100 masks of 28 x 28 are 0.3 MB, and 100
bitmaps of 16 megapixels are 1.6 GB.
"""

from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances, ROIMasks
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class ROIMaskModel(nn.Module):
    """Call a GeneralizedRCNN without pasting its masks.

    The outputs are those of the model in evaluation mode, on its device, except for the masks: the field
    ``roi_masks`` (number, M, M), between 0 and 1, takes the place of ``pred_masks``.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.training = model.training  # detectron2 restores this mode after an evaluation

    def forward(self, batched_inputs: list[dict]) -> list[dict[str, Instances]]:
        """Return a dict with ``instances`` per image."""
        found = self.model.inference(batched_inputs, do_postprocess=False)
        return [{"instances": _scale(*pair)} for pair in zip(found, batched_inputs, strict=True)]


def _scale(found: Instances, image: dict) -> Instances:
    """Scale the boxes of one image to its original size, as detectron2 does."""
    if found.has("pred_masks"):
        masks = found.pred_masks
        found.remove("pred_masks")  # detector_postprocess pastes this field, and selects from the others
        found.roi_masks = masks.tensor if isinstance(masks, ROIMasks) else masks[:, 0]
    height, width = (image.get(side, size) for side, size in zip(("height", "width"), found.image_size, strict=True))
    return detector_postprocess(found, height, width)


def without_pasting(model: nn.Module, paste_on_host: bool) -> nn.Module:
    """Return a :class:`ROIMaskModel` of the model, or the model itself if its masks have to be pasted by it.

    The latter is the case on a GPU without ``paste_on_host``, and for models of other classes.

    Args:
        model: a model, which may be wrapped in DDP.
        paste_on_host: the config key ``INFERENCE.PASTE_ON_HOST``.
    """
    unwrapped: Any = model.module if isinstance(model, DistributedDataParallel) else model
    is_stock = all(
        getattr(type(unwrapped), name, None) is getattr(GeneralizedRCNN, name) for name in ("forward", "inference")
    )
    if is_stock and (paste_on_host or unwrapped.device.type == "cpu"):
        return ROIMaskModel(unwrapped)
    return model


def paste(instances: Instances) -> None:
    """Replace ``roi_masks`` by ``pred_masks`` (number, height, width), in place, if there are any."""
    if instances.has("roi_masks"):
        masks: torch.Tensor = instances.roi_masks
        instances.remove("roi_masks")
        instances.pred_masks = ROIMasks(masks).to_bitmasks(instances.pred_boxes, *instances.image_size).tensor
