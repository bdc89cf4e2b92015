"""Signals to the process of the tests, and to worker processes of a data loader."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from detectron2.engine import TrainerBase
from torch import nn
from torch.utils.data import DataLoader

from gn_det.checkpoint.checkpointer import Checkpointer
from gn_det.training.guards.hooks import Evaluation, StopOnSignal, save_now
from gn_det.training.guards.run import guarded_evaluation
from gn_det.training.guards.signals import (
    SIGNALS,
    Interrupted,
    Stopped,
    ignore_signals_in_workers,
    listening,
    requested,
)


def send(number: int) -> None:
    """Send a signal to this process, and wait until it has arrived."""
    os.kill(os.getpid(), number)
    end = time.monotonic() + 5
    while not requested() and time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered_within_the_block(number, caplog):
    before = signal.getsignal(number)
    with listening():
        assert requested() == 0
        send(number)
        assert requested() == number
        send(number)  # the same one, forwarded by a launcher
    assert requested() == 0 and signal.getsignal(number) is before and signal.set_wakeup_fd(-1) == -1
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(f"{number.name}: the run stops")
    with listening():
        assert requested() == 0


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
            assert requested() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_ends_a_process_that_is_stuck():
    program = """import os, signal, threading, time
from gn_det.training.guards import signals
signals._SAME_SIGNAL = 0.1
def send():
    for pause in (0.1, 0.5):
        time.sleep(pause)
        os.kill(os.getpid(), signal.SIGTERM)
with signals.listening():
    threading.Thread(target=send).start()
    threading.Lock().acquire() and signals.time.sleep(30)
"""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], timeout=60)
    assert done.returncode == 143 and time.monotonic() - start < 30


class Sleepy(torch.utils.data.Dataset):
    """A dataset that sends a signal to the worker that reads it."""

    def __init__(self, number: int):
        self.number = number

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == 1:  # from another process than the parent of the worker
            subprocess.run([sys.executable, "-S", "-c", f"import os; os.kill({os.getpid()}, {int(self.number)})"])
            time.sleep(0.1)
        return index


@pytest.mark.parametrize("number", SIGNALS)
def test_workers_of_a_loader_ignore_signals(number):
    loader = DataLoader(Sleepy(number), num_workers=1)
    ignore_signals_in_workers(loader)
    with listening():
        assert [int(index) for index in loader] == [0, 1, 2]


class Model(TrainerBase):
    """A training of four iterations that gets a signal in iteration 1."""

    def __init__(self, folder, signal_at=1):
        super().__init__()
        self.model = nn.Linear(1, 1)
        self.checkpointer = Checkpointer(self.model, str(folder))
        self.signal_at, self.evaluated = signal_at, []

    def run_step(self):
        if self.iter == self.signal_at:
            send(signal.SIGTERM)

    @property
    def stop_signal(self):
        return requested()

    def stop_after(self, number):
        save_now(self, self.checkpointer)
        raise Stopped(number)


def test_training_stops_after_the_iteration_with_a_checkpoint_and_without_an_evaluation(tmp_path):
    trainer = Model(tmp_path)
    evaluation = Evaluation(1, lambda: trainer.evaluated.append(trainer.iter))
    trainer.register_hooks([StopOnSignal(), evaluation])
    with listening(), pytest.raises(Stopped) as stop:
        trainer.train(0, 4)
    assert stop.value.code == 143 and trainer.evaluated == [0]
    assert torch.load(tmp_path / "model_0000001.pth", weights_only=True)["iteration"] == 1
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def evaluate(interrupted_at=None):
    with guarded_evaluation() as callbacks:
        callbacks["on_start"]()
        for batch in range(3):
            if batch == interrupted_at:
                send(signal.SIGTERM)
            callbacks["before_inference"]()
        callbacks["on_end"]()
    return {}


def test_a_signal_ends_an_evaluation_in_training_with_a_checkpoint(tmp_path):
    trainer = Model(tmp_path, signal_at=None)
    trainer.register_hooks([Evaluation(2, lambda: evaluate(interrupted_at=1))])
    with listening(), pytest.raises(Stopped):
        trainer.train(0, 4)
    assert [path.name for path in tmp_path.glob("*.pth")] == ["model_0000001.pth"]


def test_a_signal_in_the_last_evaluation_is_remembered(tmp_path):
    trainer = Model(tmp_path, signal_at=None)
    hook = Evaluation(0, lambda: evaluate(interrupted_at=1))
    trainer.register_hooks([hook])
    with listening():
        trainer.train(0, 4)
    assert hook.interrupted == signal.SIGTERM and not list(tmp_path.glob("*.pth"))


def test_a_failed_last_iteration_is_not_evaluated(tmp_path):
    trainer = Model(tmp_path, signal_at=None)
    trainer.run_step = lambda: 1 / (trainer.max_iter - 1 - trainer.iter)
    trainer.register_hooks([Evaluation(0, lambda: trainer.evaluated.append(trainer.iter))])
    with pytest.raises(ZeroDivisionError):
        trainer.train(0, 4)
    assert trainer.evaluated == []


def test_evaluations_without_a_signal_run_to_their_end():
    assert evaluate() == {}
    with listening(), pytest.raises(Interrupted) as error:
        evaluate(interrupted_at=2)
    assert error.value.number == signal.SIGTERM
