"""Apply the model options of the config to a built model, in place.

Module types, dtypes and state-dict keys are unchanged. The outputs for a batch without padding agree to rounding.
"""

import torch
from detectron2.config import CfgNode
from torch import nn

from ..modeling.padding import ignore_padding
from ..ops import select
from .cuda_graphs import use_cuda_graphs
from .fuse import fuse
from .precision import inference_precision, precision
from .roi_align import use_row_poolers
from .roi_align_gpu import use_level_poolers
from .training import keep_rois_in_float32, to_channels_last

__all__ = ["apply_model_options", "precision"]


def apply_model_options(cfg: CfgNode, model: nn.Module, for_training: bool = False) -> nn.Module:
    """Apply ``MODEL.GN.IGNORE_PADDING``, ``MODEL.GN.FUSE`` and the ``INFERENCE`` keys to a built model, in place.

    Call it once, right after the model is built. The trainer does so with ``for_training``, and so does
    every function that loads a model for inference, without it. It changes the following:

    - ``MODEL.GN.IGNORE_PADDING``: the outputs for an image do not depend on the padding that other images
      of the batch cause (:func:`gn_det.modeling.padding.ignore_padding`). In training on a GPU, this also needs
      ``GPU.TRAIN_WITHOUT_PADDING``.
    - ``MODEL.GN.FUSE``: GN, residual sum and ReLU run as one operation, on a CPU, and on a GPU with
      ``GPU.MIXED_PRECISION``. Without it, a GPU runs PyTorch's kernels, which detectron2's layers call.
    - ``INFERENCE.CHANNELS_LAST``: on a CPU, RoIAlign without gradients is computed by rows, and the
      parameters become channels_last.
    - ``INFERENCE.DTYPE`` other than float32: RoIs keep float32 coordinates.
    - ``GPU.MIXED_PRECISION``: on a GPU, the parameters become channels_last, and RoIAlign is one kernel per level.
    - ``INFERENCE.CUDA_GRAPHS`` and, with ``for_training``, ``TRAIN.CUDA_GRAPHS``: on a GPU, the backbone and the
      head of the RPN are replayed as CUDA graphs (:mod:`gn_det.acceleration.cuda_graphs`).

    Args:
        for_training: the model will be trained, and only evaluated in between. The memory format of
            the parameters is then left to
            :func:`gn_det.acceleration.training.apply_training_options`.

    Returns:
        the same model.
    """
    how = inference_precision(cfg)
    on_gpu = next(model.parameters()).device.type != "cpu"
    if cfg.MODEL.GN.IGNORE_PADDING:
        ignore_padding(model, in_training=not on_gpu or cfg.GPU.TRAIN_WITHOUT_PADDING)
    if cfg.MODEL.GN.FUSE and (not on_gpu or how.implementation or select.forced):
        fuse(model, how.implementation)
    if how.implementation == "triton":
        use_level_poolers(model)
    elif cfg.INFERENCE.CHANNELS_LAST:
        use_row_poolers(model)
    if how.dtype is not None:
        keep_rois_in_float32(model)
    if how.channels_last and not for_training:
        to_channels_last(model) if on_gpu else model.to(memory_format=torch.channels_last)
    if on_gpu:
        use_cuda_graphs(model, inference=cfg.INFERENCE.CUDA_GRAPHS, training=for_training and cfg.TRAIN.CUDA_GRAPHS)
    return model
