"""Random numbers that depend only on the seed, the iteration, the image and the process.

A resumed training draws the same numbers as one that was not interrupted, without the states of the
random generators in its checkpoints.
"""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

#: What a number is drawn for; the first argument of :func:`derive` after the seed.
ORDER, IMAGE, ITERATION = range(3)


def run_seed(cfg: CfgNode) -> int:
    """Return ``SEED``, or if it is negative a random number that is equal in all processes."""
    return cfg.SEED if cfg.SEED >= 0 else int(comm.shared_random_seed() % 2**31)


def derive(seed: int, *keys: int) -> int:
    """Return a seed, from 0 to 2**32 - 1, for a part of the run that the keys name."""
    return int(np.random.SeedSequence([seed, *keys]).generate_state(1)[0])


def set_seed(seed: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch on the CPU."""
    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed() also seeds GPUs, which would start CUDA's bookkeeping in each data worker.
    torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of Python, NumPy and PyTorch on the CPU, and restore their states at the end."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    set_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class SeedIterations(HookBase):
    """Hook that seeds the random generators of this process before each iteration.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def before_step(self) -> None:
        """Seed the generators for this iteration and process, also those of a GPU."""
        seed = derive(self.seed, ITERATION, self.trainer.iter, comm.get_rank())
        set_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(seed)
