"""Guards around a whole run and around an evaluation."""

import contextlib
import errno
import logging
import re
from collections.abc import Callable, Iterator

from detectron2.config import CfgNode
from detectron2.engine import TrainerBase

from ...errors import GNDetError
from .ranks import agree, is_lost_connection
from .signals import Interrupted, listening, requested
from .stalls import Stage, enter, watching

_WORKER_ENDED = re.compile(
    r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (is killed by signal: \w+|exited unexpectedly)"
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def guarded(cfg: CfgNode) -> Iterator[None]:
    """Guard a training or an evaluation against signals and stalled processes. All processes must call it together.

    Raises:
        GNDetError: a process that loads images has ended, or the disk is full.
    """
    log = logging.getLogger(TrainerBase.__module__)  # where detectron2 logs exceptions of a training
    log.addFilter(_is_bug)
    try:
        with listening(), watching(cfg.TRAIN.STALL_MINUTES):
            yield
    except (OSError, RuntimeError) as error:
        if sentence := sentence_for(error):
            raise GNDetError(sentence) from error
        raise
    finally:
        log.removeFilter(_is_bug)


def sentence_for(error: BaseException | None) -> str:
    """Return what to say about an error of a worker process or of a full disk; "" for all other errors."""
    if isinstance(error, RuntimeError) and (ended := _WORKER_ENDED.search(str(error))):
        return (
            f"The process {ended[1]}, which loads images, {ended[2]}: in most cases the memory is full, or in a container "
            "the shared memory (docker run --shm-size 8g); use a smaller DATALOADER.NUM_WORKERS, and continue with "
            "--resume."
        )
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"A file cannot be written ({error}): free space on the disk, then continue with --resume."
    return ""


def _is_bug(record: logging.LogRecord) -> bool:
    """Return whether a log record is not the traceback of an error that has a sentence."""
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, GNDetError) or sentence_for(error) or is_lost_connection(error))


@contextlib.contextmanager
def guarded_evaluation() -> Iterator[dict[str, Callable[[], None]]]:
    """Guard the evaluation of a dataset. All processes must call it together.

    Yields:
        callbacks for detectron2's ``inference_on_dataset``.

    Raises:
        Interrupted: a process has received a signal. It is raised in all processes.
    """
    batches, met = 0, False

    def before_batch() -> None:
        nonlocal batches
        batches += 1
        enter(Stage.EVALUATES, batches)
        if number := requested():
            raise Interrupted(number)

    def meet() -> None:
        nonlocal met
        met = True
        enter(Stage.WAITS)
        number = agree(requested())[0]
        enter(Stage.FREE)
        if number:
            raise Interrupted(number)

    try:
        yield {"on_start": lambda: enter(Stage.EVALUATES), "before_inference": before_batch, "on_end": meet}
    except Interrupted:
        if not met:
            meet()  # those that have not been interrupted come here at the end of their batches
        raise
