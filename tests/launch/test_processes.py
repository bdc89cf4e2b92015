"""How the processes of a run are started (see test_distributed.py and test_guards.py for real ones)."""

import signal
import types

import pytest
from torch.multiprocessing import ProcessExitedException

from gn_det.launch import processes
from gn_det.launch.arguments import argument_parser
from gn_det.launch.processes import _wait, launch
from helpers.errors import error_sentence


@pytest.mark.parametrize(
    ("name", "number", "words", "warns"),
    [
        ("SLURM_NTASKS", "8", [], True),
        ("OMPI_COMM_WORLD_SIZE", "2", [], True),
        ("SLURM_NTASKS", "1", [], False),
        ("SLURM_NTASKS", "8(x2)", [], False),
        ("SLURM_NTASKS", "2", ["--num-machines", "2"], False),
    ],
)
def test_tasks_without_torchrun_give_a_warning(monkeypatch, caplog, name, number, words, warns):
    for variable in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, number)
    monkeypatch.setattr("gn_det.launch.processes.prepare", lambda args: None)
    monkeypatch.setattr("gn_det.launch.processes._start", lambda main, args: None)
    launch(lambda args: None, argument_parser("").parse_args(words))
    assert (f"{name} is {number}, but this process is not started by torchrun" in caplog.text) == warns


class Process:
    def __init__(self, exitcode: int):
        self.exitcode = exitcode


class Context:
    """The processes of a run after the first one has failed."""

    def __init__(self, *codes: int):
        self.processes = [Process(code) for code in codes]

    def join(self, grace_period: float) -> bool:
        code = self.processes[0].exitcode
        raise ProcessExitedException("...", 0, 123, code, "SIGKILL" if code == -9 else None)


@pytest.mark.parametrize(
    ("codes", "received", "code"),
    [((143, 143), [15], 143), ((-15, 143), [15, 15], 143), ((1, 2), [], 2), ((3, 0), [], 2), ((3, 143), [], 143)],
)
def test_exit_code_of_the_launcher(codes, received, code):
    with pytest.raises(SystemExit) as end:
        _wait(Context(*codes), received)
    assert end.value.code == code


def test_a_killed_process_is_named():
    assert "Process 0 of 2 (process id 123) was ended by SIGKILL" in error_sentence(_wait, Context(-9, -15), [])


def test_a_signal_while_the_processes_start_is_forwarded_once_to_each(monkeypatch):
    sent = []

    def send(pid, number):
        sent.append((pid, number))
        assert len(sent) < 10, "without end"

    def start(*args, **kwargs):
        signal.raise_signal(signal.SIGTERM)
        return types.SimpleNamespace(processes=[types.SimpleNamespace(pid=11, is_alive=lambda: True)])

    monkeypatch.setattr(processes, "start_processes", start)
    monkeypatch.setattr(processes, "_wait", lambda context, received: None)
    monkeypatch.setattr(processes.os, "kill", send)
    processes._start(print, argument_parser("").parse_args(["--num-gpus", "1"]))
    assert sent == [(11, signal.SIGTERM)]
