"""Checks of the options that use CUDA graphs."""

from detectron2.config import CfgNode

from ..errors import GNDetError
from ..modeling.norm import PER_SAMPLE


def check_cuda_graphs(cfg: CfgNode, processes: int) -> None:
    """Raise GNDetError if a training run cannot use CUDA graphs as the config asks for.

    Args:
        processes: number of processes of the run.
    """
    keys = [f"{section}.CUDA_GRAPHS" for section in ("TRAIN", "INFERENCE") if cfg[section].CUDA_GRAPHS]
    if keys and cfg.TRAIN.COMPILE:
        raise GNDetError(
            f"{keys[0]} is True, but TRAIN.COMPILE runs the backbone in another way: turn off one of the two."
        )
    if not cfg.TRAIN.CUDA_GRAPHS:
        return
    norms = (cfg.MODEL.RESNETS.NORM, cfg.MODEL.FPN.NORM)
    unsupported = {
        "TRAIN.CHECKPOINT_ACTIVATIONS is True": cfg.TRAIN.CHECKPOINT_ACTIVATIONS,
        # A graph writes its gradients to the same memory each time.
        f"TRAIN.ACCUMULATE is {cfg.TRAIN.ACCUMULATE}": cfg.TRAIN.ACCUMULATE > 1,
        f"the run has {processes} processes": processes > 1,
        # The runs that warm up a graph would change running statistics.
        f"the norms are {' and '.join(norms)}": any(norm not in (*PER_SAMPLE, "FrozenBN", "") for norm in norms),
    }
    if problem := next((text for text, applies in unsupported.items() if applies), None):
        raise GNDetError(f"TRAIN.CUDA_GRAPHS is True, but {problem}, which it does not support: set it to False.")
