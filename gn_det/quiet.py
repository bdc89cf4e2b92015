"""Silence PyTorch's warnings about detectron2's code, because a user cannot act on them."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


def silence_detectron2() -> None:
    """Ignore PyTorch's warnings about detectron2's code in the rest of this process (for commands)."""
    warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)
    warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ignore PyTorch's warnings about detectron2's code in a block, then restore filters and log level."""
    log = logging.getLogger("torch.fx._symbolic_trace")
    level = log.level
    with warnings.catch_warnings():
        silence_detectron2()
        try:
            yield
        finally:
            log.setLevel(level)
