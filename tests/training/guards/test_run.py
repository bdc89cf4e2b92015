"""Errors that have a sentence, without a run (see tests/launch/test_guards.py for real ones)."""

import errno
import logging

import pytest
from detectron2.engine import TrainerBase

from gn_det import GNDetError
from gn_det.config.defaults import get_cfg
from gn_det.training.guards.run import guarded
from helpers.errors import error_sentence


class Failing(TrainerBase):
    """A training whose first iteration raises an error."""

    def __init__(self, error: Exception):
        super().__init__()
        self.error = error

    def run_step(self):
        raise self.error


def train(error: Exception) -> None:
    with guarded(get_cfg()):
        Failing(error).train(0, 1)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "),
            "The process 12, which loads images, ",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"),
            "The process 12, 13, which loads images, e",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "x.pth"), "No space left on device: 'x.pth'): free space"),
        (GNDetError("A sentence."), "A sentence."),
    ],
)
def test_errors_with_a_sentence_have_no_traceback(error, said, caplog):
    assert said in error_sentence(train, error) and not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), OSError(errno.EIO, "Input/output error"), ZeroDivisionError()]
)
def test_other_errors_keep_their_traceback(error, caplog):
    caplog.set_level(logging.ERROR)
    with pytest.raises(type(error)) as raised:
        train(error)
    assert raised.value is error and any(record.exc_info for record in caplog.records)
