"""Run gn_det or stock detectron2 for the cases: one tiny dataset, one model, shared undisturbed runs."""

import contextlib
import pickle
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from gn_det.data.shapes import generate
from helpers.forks import Fork
from helpers.paths import REPO, TOOLS
from helpers.tools import own_data

from . import inject
from .frame import check, finished
from .look import TIME_LIMIT, versions, weights

ITERATIONS = 6
STOCK = REPO / "tests/faults/stock.py"
OPTIONS = f"""INPUT.MIN_SIZE_TRAIN (96,) INPUT.MIN_SIZE_TEST 96 SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER {ITERATIONS}
    SOLVER.STEPS () SOLVER.CHECKPOINT_PERIOD 2 DATALOADER.NUM_WORKERS 0 SEED 1""".split()
EVALUATED = ("TEST.EVAL_PERIOD", "2")


class Lab:
    """The runs of one case.

    Attributes:
        kills: how many processes the case has killed with SIGKILL in the middle of a run.
    """

    def __init__(self, shared: "Shared", folder: Path, stock: bool = False):
        """
        Args:
            shared: what the cases have in common.
            folder: new folder for the files of this case.
            stock: whether the runs are those of stock detectron2.
        """
        self.shared, self.folder, self.stock, self.kills = shared, folder, stock, 0
        self._outputs, self._forks = 0, []
        folder.mkdir(parents=True)

    def out(self) -> Path:
        """Return the path of a new OUTPUT_DIR, which does not exist yet."""
        self._outputs += 1
        return self.folder / f"out{self._outputs}"

    def copy(self, source: Path) -> Path:
        """Return a copy of an OUTPUT_DIR."""
        return Path(shutil.copytree(source, self.out()))

    # --- commands ---------------------------------------------------------------------------------------------

    def start(
        self,
        out: Path,
        *options: object,
        resume: bool = False,
        faults: list[tuple] = (),
        flags: tuple = (),
        evaluated: bool = False,
        environment: dict[str, str] | None = None,
        data: Path | None = None,
        weights: object = None,
    ) -> Fork:
        """Start a training.

        Args:
            options: config keys and values.
            resume: pass ``--resume``.
            faults: see :func:`faults.inject.run_with_faults`.
            flags: other flags of the command.
            evaluated: give the run a test set.
            data: folder of the data, by default the shared one.
            weights: value of MODEL.WEIGHTS.
        """
        words = [*flags, *(["--resume"] if resume else [])]
        opts = [*OPTIONS, "OUTPUT_DIR", out, *options]
        if weights is not None:
            opts += ["MODEL.WEIGHTS", weights]
        data = data or self.shared.data
        if self.stock:
            tests = ["DATASETS.TEST", "('stock_val',)"] if evaluated else []
            return self._start(STOCK, ["--data", data, *words, *opts, *tests], faults, environment)
        own = own_data(data)
        words = ["--config", "quickstart_R18_FPN_gn_scratch", *(own if evaluated else own[:4]), *words]
        return self._start(TOOLS / "train_net.py", [*words, *opts], faults, environment)

    def train(
        self, out: Path, *options: object, timeout: float = TIME_LIMIT, **more: object
    ) -> subprocess.CompletedProcess:
        """Train as :meth:`start` does, and wait."""
        return self.start(out, *options, **more).wait(timeout)

    def evaluate(self, out: Path, *options: object, **more: object) -> subprocess.CompletedProcess:
        """Evaluate the run in a folder."""
        return self.train(out, *options, resume=True, evaluated=True, flags=("--eval-only",), **more)

    def predict(self, out: Path) -> subprocess.CompletedProcess:
        """Predict one image with the run in a folder."""
        image = next((self.shared.data / "val").iterdir())
        if self.stock:
            return self._start(
                STOCK, ["--data", self.shared.data, "--predict", image, *OPTIONS, "OUTPUT_DIR", out]
            ).wait(TIME_LIMIT)
        return self.tool("predict.py", image, "--model", out, "--json", self.out().with_suffix(".json"))

    def tool(
        self, name: str, *words: object, faults: list[tuple] = (), **environment: str
    ) -> subprocess.CompletedProcess:
        """Run a file of ``tools/``."""
        return self._start(TOOLS / name, list(words), faults, environment).wait(TIME_LIMIT)

    def ranks(
        self,
        out: Path,
        *options: object,
        faults_of: dict[int, list] | None = None,
        wait_for: tuple[int, float] = (),
        **more: object,
    ) -> list[subprocess.CompletedProcess]:
        """Train in two ranks, with torchrun's environment variables; return what each of them did.

        Args:
            faults_of: faults by rank.
            wait_for: a rank and seconds: wait only for this rank, and kill the other one then.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        forks = []
        for rank in range(2):
            environment = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            faults = (faults_of or {}).get(rank, [])
            forks.append(self.start(out, *options, environment=environment, faults=faults, **more))
        if wait_for:
            first = forks[wait_for[0]].wait(wait_for[1])
            forks[1 - wait_for[0]].kill_group()
            rest = forks[1 - wait_for[0]].wait()
            return [first, rest] if wait_for[0] == 0 else [rest, first]
        return [fork.wait(TIME_LIMIT) for fork in forks]

    def _start(self, program: Path, words: list, faults: list[tuple] = (), environment: dict | None = None) -> Fork:
        words = list(map(str, words))
        fork = Fork(inject.run_with_faults, str(program), words, list(faults), environment=environment)
        self._forks.append(fork)
        return fork

    def close(self) -> None:
        """Kill what is left of the processes of all runs, and delete their files."""
        for fork in self._forks:
            fork.kill_group()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- kills ------------------------------------------------------------------------------------------------

    def kill_at_operation(self, out: Path, number: int, *options: object, **more: object) -> bool:
        """Train, and kill the process before a file operation. Returns False if there are fewer operations."""
        done = self.train(out, *options, faults=[(inject.kill_at_operation, str(out), number)], **more)
        return self.killed(done)

    def kill_while_writing(self, out: Path, share: float, *options: object, **more: object) -> bool:
        """Train, and kill the process when it has written this share of a checkpoint."""
        before, size = versions(out), share * self.shared.checkpoint_size(self.stock)
        fork = self.start(out, *options, **more)
        end = time.monotonic() + TIME_LIMIT
        while fork.running and time.monotonic() < end:
            if any(before.get(name) != key and key[1] >= max(size, 1) for name, key in versions(out).items()):
                fork.send(signal.SIGKILL)
                break
            time.sleep(0.0005)
        return self.killed(fork.wait(TIME_LIMIT))

    def kill_at_iteration(self, out: Path, number: int, *options: object, **more: object) -> None:
        """Train, and kill the process in the forward pass of an iteration."""
        fault = (inject.at_iteration, number, inject.send, signal.SIGKILL)
        check(self.killed(self.train(out, *options, faults=[fault], **more)), "the run ended before it was killed")

    def killed(self, done: subprocess.CompletedProcess) -> bool:
        if done.returncode == -signal.SIGKILL:
            self.kills += 1
            return True
        finished(done)
        return False

    # --- checks -----------------------------------------------------------------------------------------------

    def equal(
        self, out: Path, done: subprocess.CompletedProcess, iterations: int = ITERATIONS, *options: object
    ) -> str:
        """Check that a run succeeded, and that its final weights are those of the undisturbed run, bit for bit."""
        finished(done)
        reference = self.shared.reference(self.stock, iterations, *options)
        check((out / "model_final.pth").is_file(), "exit code 0, but model_final.pth is missing")
        check(weights(out / "model_final.pth") == weights(reference / "model_final.pth"), "the final weights differ")
        return "survived: final weights equal"

    def good_checkpoints(self, out: Path) -> list[int]:
        """Return the iterations of the readable checkpoints in a folder, sorted."""
        found = []
        for file in out.glob("model_*.pth"):
            with contextlib.suppress(Exception):
                found.append(torch.load(file, weights_only=True, mmap=True)["iteration"])
        return sorted(found)


class Shared:
    """Data and undisturbed runs that all cases share; made when they are first asked for, and read only."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._runs: dict[tuple, Path] = {}
        self._lock = threading.RLock()  # cases may run in several threads

    @property
    def data(self) -> Path:
        """Folder with 12 training and 4 test images of 96 pixels."""
        with self._lock:
            generate(self.folder / "shapes", num_train=12, num_val=4, size=96)
        return self.folder / "shapes"

    def reference(self, stock: bool, iterations: int = ITERATIONS, *options: object, evaluated: bool = False) -> Path:
        """OUTPUT_DIR of an undisturbed run: model_0000003.pth and model_final.pth of ITERATIONS 6."""

        def make(lab: Lab, out: Path) -> None:
            opts = ["SOLVER.CHECKPOINT_PERIOD", 4, "SOLVER.MAX_ITER", iterations, *options]
            finished(lab.train(out, *opts, evaluated=evaluated))

        return self._run(stock, ("finished", iterations, evaluated, *options), make)

    def interrupted(self, stock: bool) -> Path:
        """OUTPUT_DIR of a run killed in its fifth iteration: model_0000001.pth and model_0000003.pth."""
        return self._run(stock, ("interrupted",), lambda lab, out: lab.kill_at_iteration(out, 4))

    def checkpoint_size(self, stock: bool) -> int:
        """Bytes of a checkpoint."""
        return (self.reference(stock) / "model_final.pth").stat().st_size

    def weights_file(self, suffix: str) -> Path:
        """File of the weights of a finished run, without the state of the training: .pth, .pkl or .safetensors."""
        path, reference = self.folder / f"weights{suffix}", self.reference(False)
        with self._lock:
            if path.exists():
                return path
            state = torch.load(reference / "model_final.pth", weights_only=True)["model"]
            if suffix == ".safetensors":
                save_file({name: value.contiguous() for name, value in state.items()}, path)
            elif suffix == ".pkl":
                arrays = {name: value.numpy() for name, value in state.items()}
                path.write_bytes(pickle.dumps({"model": arrays, "__author__": "someone"}, 2))
            else:
                torch.save({"model": state}, path)
        return path

    def from_weights(self, stock: bool) -> str:
        """Digest of the final weights of one iteration from :meth:`weights_file`."""
        options = ("SOLVER.MAX_ITER", 1, "MODEL.WEIGHTS", self.weights_file(".pth"))
        out = self._run(stock, ("from weights",), lambda lab, out: finished(lab.train(out, *options)))
        return weights(out / "model_final.pth")

    def _run(self, stock: bool, key: tuple, make: Callable[[Lab, Path], object]) -> Path:
        key = (stock, *map(str, key))
        with self._lock:
            if key not in self._runs:
                lab = Lab(self, Path(tempfile.mkdtemp(dir=self.folder)) / "shared", stock)
                out = lab.out()
                make(lab, out)
                self._runs[key] = out
            return self._runs[key]


@contextlib.contextmanager
def lab_in(shared: Shared, stock: bool = False) -> Iterator[Lab]:
    """Yield a Lab, and delete its files at the end."""
    lab = Lab(shared, Path(tempfile.mkdtemp(dir=shared.folder)) / "case", stock)
    try:
        yield lab
    finally:
        lab.close()
