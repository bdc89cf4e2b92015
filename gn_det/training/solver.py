"""The optimizer: detectron2's, with no weight decay on any norm."""

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as detectron2_build_optimizer

from ..modeling.norm import norm_parameters


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """detectron2's optimizer, in which every norm's scale and shift decays by ``SOLVER.WEIGHT_DECAY_NORM`` (0).

    "We use a weight decay of 0 for the gamma and beta parameters, which is important for good detection results"
    (Section 4.2). detectron2 knows norms by a list of types and decays those not on it, its own LayerNorm among them;
    and ``WEIGHT_DECAY_BIAS`` overrides it for shifts.
    """
    optimizer = detectron2_build_optimizer(cfg, model)
    decay = cfg.SOLVER.WEIGHT_DECAY_NORM
    if decay is None:  # then norms decay as all else
        return optimizer
    norms = norm_parameters(model)
    for group in list(optimizer.param_groups):
        mine = [p for p in group["params"] if p in norms]
        if mine and group["weight_decay"] != decay:
            group["params"] = [p for p in group["params"] if p not in norms]
            optimizer.add_param_group({**group, "params": mine, "weight_decay": decay})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    return optimizer
