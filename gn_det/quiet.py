"""Silence for warnings about detectron2's own code, which a user of it cannot act on."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


def silence_detectron2() -> None:
    """Ignore what PyTorch warns about in detectron2's code, from now on in this process. For tools."""
    warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)
    warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ignore these warnings within a block. The filters and log levels of the process are restored after it."""
    log = logging.getLogger("torch.fx._symbolic_trace")
    level = log.level
    with warnings.catch_warnings():
        silence_detectron2()
        try:
            yield
        finally:
            log.setLevel(level)
