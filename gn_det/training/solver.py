"""detectron2's optimizer, without weight decay on any normalization layer."""

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as detectron2_build_optimizer

from ..modeling.norm import norm_parameters


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Build detectron2's optimizer, with weight decay ``SOLVER.WEIGHT_DECAY_NORM`` (0) on all norms.

    "We use a weight decay of 0 for the gamma and beta parameters, which is important for good
    detection results" (Section 4.2 of the paper). detectron2 alone recognizes norms by a list of
    types. It decays norms that are not on the list, such as its own LayerNorm, and its
    ``SOLVER.WEIGHT_DECAY_BIAS`` also applies to the shifts (beta) of norms.

    Args:
        cfg: config. If ``SOLVER.WEIGHT_DECAY_NORM`` is None, norms decay like all other parameters.
        model: model whose trainable parameters are optimized.
    """
    optimizer = detectron2_build_optimizer(cfg, model)
    decay = cfg.SOLVER.WEIGHT_DECAY_NORM
    if decay is None:
        return optimizer
    norms = norm_parameters(model)
    for group in list(optimizer.param_groups):
        in_norms = [p for p in group["params"] if p in norms]
        if in_norms and group["weight_decay"] != decay:
            group["params"] = [p for p in group["params"] if p not in norms]
            optimizer.add_param_group({**group, "params": in_norms, "weight_decay": decay})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    return optimizer
