"""Signals, killed and stopped processes, and diverging losses in real runs of one and two processes."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gn_det.data import shapes
from helpers.paths import TOOLS
from helpers.tools import own_data

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds child processes in /proc")
LONG = """INPUT.MIN_SIZE_TRAIN (96,) INPUT.MIN_SIZE_TEST 96 SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 100000 SOLVER.STEPS ()
    SEED 5 DATALOADER.NUM_WORKERS 0""".split()
TWO = ["--num-gpus", "2"]
WORKER = ["DATALOADER.NUM_WORKERS", "1"]
STALL = ["TRAIN.STALL_MINUTES", "0.15"]
SECONDS = 90  # until a run has to be over


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Six training images and many validation images of shapes."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    shapes.generate(folder, num_train=6, num_val=200, seed=1, size=96)
    return folder


class Run:
    """A run in a new process."""

    def __init__(self, data: Path, output: Path, *words: str, launcher: tuple[str, ...] = (), path: Path = Path()):
        self.output, self.printed = output, output.with_name("printed.txt")
        config = ["--config", "quickstart_R18_FPN_gn_scratch", *map(str, own_data(data))]
        keys = [word for word in words if not word.startswith("--") and word not in TWO]
        flags = [word for word in words if word not in keys]
        command = [sys.executable, *launcher, str(TOOLS / "train_net.py"), *config, *flags, *LONG, *keys]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(path), environment.get("PYTHONPATH", "")])
        with self.printed.open("w") as file:
            self.process = subprocess.Popen(
                [*command, "OUTPUT_DIR", str(output)], stdout=file, stderr=subprocess.STDOUT, env=environment
            )

    def wait_for(self, text: str, seconds: float = SECONDS) -> "Run":
        """Wait until a line of the log contains the text, and a little longer."""
        log = self.output / "log.txt"
        end = time.monotonic() + seconds
        while not (log.exists() and text in log.read_text()):
            assert self.process.poll() is None and time.monotonic() < end, self.text()
            time.sleep(0.1)
        time.sleep(1.5)
        return self

    def end(self, seconds: float = SECONDS) -> tuple[int, str]:
        """Return the exit code and what was printed."""
        return self.process.wait(seconds), self.text()

    def text(self) -> str:
        return self.printed.read_text()

    def children(self) -> list[int]:
        """Return the ids of the ranks or workers that the process has started, in this order."""
        return sorted(
            pid
            for pid, parent, command in processes()
            if parent == self.process.pid and "resource_tracker" not in command
        )


def processes() -> Iterator[tuple[int, int, str]]:
    """Yield id, parent and command of all processes that run."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
            if command := stat.with_name("cmdline").read_text():  # empty for a process that has ended
                yield int(stat.parent.name), int(parent), command
        except (OSError, IndexError):
            continue


@pytest.fixture
def run(data, tmp_path):
    """Function that starts a :class:`Run` with more words of the command line. The run is killed after the test."""
    runs = []

    def start(*words: str, **options) -> Run:
        runs.append(Run(data, tmp_path / "out", *words, **options))
        return runs[-1]

    yield start
    for one in runs:
        for pid in [*one.children(), one.process.pid]:
            if one.process.poll() is None:
                os.kill(pid, signal.SIGKILL)


def checkpoint(output: Path) -> dict:
    name = (output / "last_checkpoint").read_text()
    loaded = torch.load(output / name, weights_only=True)
    assert name == f"model_{loaded['iteration']:07d}.pth"
    return loaded


STARTED = "Starting training from iteration"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_signal_to_all_processes_saves_a_checkpoint(run, name):
    one, number = run(*WORKER).wait_for(STARTED), getattr(signal, name)
    for pid in [one.process.pid, *one.children()]:
        os.kill(pid, number)
    code, printed = one.end()
    assert code == 128 + number and "Traceback" not in printed, printed
    done = checkpoint(one.output)["iteration"] + 1
    assert f"Stopped by {name} after {done} of 100000 iterations; continue from {one.output}" in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_to_the_launcher_stops_all_ranks(run, name):
    one = run(*TWO).wait_for(STARTED)
    one.process.send_signal(getattr(signal, name))
    ranks = one.children()
    code, printed = one.end()
    assert code == 128 + getattr(signal, name) and "Traceback" not in printed, printed
    assert checkpoint(one.output)["iteration"] > 0 and not any(pid in ranks for pid, *_ in processes())


@pytest.mark.slow
def test_torchrun_stops_all_ranks(run):
    launcher = ("-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    one = run(launcher=launcher).wait_for(STARTED)
    one.process.send_signal(signal.SIGTERM)
    one.end()
    assert checkpoint(one.output)["iteration"] > 0 and "Stopped by SIGTERM" in one.text()


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all(run):
    one = run(*TWO).wait_for(STARTED)
    os.kill(one.children()[1], signal.SIGTERM)
    code, printed = one.end()
    assert code == 143 and "Traceback" not in printed and checkpoint(one.output)["iteration"] > 0, printed


@pytest.mark.slow
def test_a_second_signal_ends_the_run_at_once(run):
    one = run("TEST.EVAL_PERIOD", "1", "INPUT.MIN_SIZE_TEST", "1600", "INPUT.MAX_SIZE_TEST", "1600").wait_for(
        "Start inference"
    )
    one.process.send_signal(signal.SIGTERM)
    time.sleep(2.2)
    one.process.send_signal(signal.SIGTERM)
    assert one.end(10)[0] in (143, -signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [[], TWO], ids=["1 process", "2 processes"])
def test_a_signal_in_an_evaluation_saves_a_checkpoint(run, ranks):
    one = run(*ranks, "TEST.EVAL_PERIOD", "3").wait_for("Start inference")
    one.process.send_signal(signal.SIGTERM)
    code, printed = one.end()
    assert code == 143 and "Traceback" not in printed and checkpoint(one.output)["iteration"] == 2, printed
    assert not list(one.output.glob("records/*"))


@pytest.mark.slow
def test_a_diverging_training_stops_with_a_sentence(run):
    one = run(
        *TWO,
        "SOLVER.BASE_LR",
        "1e12",
        "SOLVER.WARMUP_ITERS",
        "0",
        "SOLVER.CHECKPOINT_PERIOD",
        "1",
        "SOLVER.MAX_ITER",
        "6",
    )
    code, printed = one.end()
    assert code == 2 and "Traceback" not in printed, printed
    assert re.search(
        r"error: The training stops at iteration=\d+, before the optimizer step, because of .*/train/.*png", printed
    )
    assert f"{one.output}/model_" in printed and not list(one.output.glob("records/*"))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_named(run, rank):
    one = run(*TWO).wait_for(STARTED)
    pid = one.children()[rank]
    os.kill(pid, signal.SIGKILL)
    code, printed = one.end(40)
    assert code == 2 and f"Process {rank} of 2 (process id {pid}) was ended by SIGKILL" in printed, printed
    assert "Traceback" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_is_named(run, rank):
    one = run(*TWO, *STALL).wait_for(STARTED)
    pid = one.children()[rank]
    os.kill(pid, signal.SIGSTOP)
    code, printed = one.end(60)
    assert code == 2 and "Traceback" not in printed, printed
    assert f"The run has made no progress for 0.15 minutes: rank {rank} (process {pid}" in printed


@pytest.mark.slow
def test_a_killed_worker_is_named(run):
    one = run(*WORKER).wait_for(STARTED)
    (worker,) = one.children()
    os.kill(worker, signal.SIGKILL)
    code, printed = one.end(30)
    assert code == 2 and f"error: The process {worker}, which loads images, " in printed, printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_a_stopped_worker_is_named(run):
    one = run(*WORKER, *STALL).wait_for(STARTED)
    (worker,) = one.children()
    os.kill(worker, signal.SIGSTOP)
    code, printed = one.end(40)
    assert code == 2 and "loads the images of iteration " in printed, printed
    assert f"worker process {worker} is stopped" in printed and not any(pid == worker for pid, *_ in processes())


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("error", "code"), [("gn_det.GNDetError", 2), ("ZeroDivisionError", 1)])
def test_an_error_of_one_rank_is_printed(run, tmp_path, rank, error, code):
    (tmp_path / "sitecustomize.py").write_text(f"""import sys, threading
def fail():
    import os, time
    while "gn_det.training.step" not in sys.modules:
        time.sleep(0.1)
    time.sleep(0.5)
    import gn_det
    from gn_det.training.step import TrainStep
    def run_step(self):
        import torch.distributed as dist
        if dist.get_rank() == {rank}:
            raise {error}("Rank {rank} fails.")
        dist.barrier()
    TrainStep.run_step = run_step
threading.Thread(target=fail, daemon=True).start()
""")
    one = run(*TWO, path=tmp_path)
    found, printed = one.end()
    assert found == code and ("Traceback" in printed) == (code == 1), printed
    if code == 2:
        assert printed.count(f"error: Rank {rank} fails.") == 1, printed
    else:
        assert f"ZeroDivisionError: Rank {rank} fails." in printed, printed


@pytest.mark.slow
def test_torchrun_prints_the_sentence_of_a_rank(run):
    launcher = ("-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    keys = ["SOLVER.BASE_LR", "1e12", "SOLVER.WARMUP_ITERS", "0", "SOLVER.CHECKPOINT_PERIOD", "1"]
    code, printed = run(*keys, launcher=launcher).end()
    assert code == 1 and "error: The training stops at iteration=1" in printed, printed
