"""What the process of one candidate does: start, train, predict, profile, compare outputs, time GN + ReLU."""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.solver import build_optimizer as detectron2_build_optimizer
from detectron2.utils.events import EventStorage
from torch import nn

from ...acceleration.cpu_memory import keep_freed_memory
from ...acceleration.precision import precision
from ...training.solver import build_optimizer
from ...training.step import build_train_step
from ..operations import operations
from ..outputs import differences
from ..stages import Setup
from ..timing import frozen_garbage
from .candidates import CANDIDATES, build_for_inference, build_for_training, candidate_config
from .data import test_images, training_loader
from .profiling import profile_gpu

OPERATIONS_VARIANT = "bfloat16 channels_last"


class Session:
    """The models of one candidate. Each public method is a command, and returns what goes into the record.

    Memory is in bytes, without that of the other model. It is None on a CPU.

    Args:
        name: a key of CANDIDATES.
        cfg: the config of the benchmark.
        weights: file of :func:`gn_det.benchmark.gpu.candidates.save_weights`.
    """

    def __init__(self, name: str, cfg: CfgNode, weights: Path):
        self._candidate = CANDIDATES[name]
        self._cfg = candidate_config(self._candidate, cfg)
        self._weights = weights
        self._cuda = cfg.MODEL.DEVICE.startswith("cuda")
        self._seed = max(cfg.SEED, 0)
        self._trained: _Training | None = None
        self._predictor: _Inference | None = None
        if self._cuda:
            torch.zeros(1, device=cfg.MODEL.DEVICE)  # creates the CUDA context
        keep_freed_memory(not self._candidate.stock)

    def start(self, batch: int, iterations: int) -> dict:
        """Build the model and train it for the first time in this process.

        Returns:
            "built", "first_iteration" and "seconds": seconds from the start until the model is built, and until
            the first and the last iteration end; "iterations"; "reserved": memory.
        """
        begun = time.perf_counter()
        self._trained = _Training(self._candidate.stock, self._cfg, self._build_for_training())
        self._trained.load(batch, self._seed)
        built = time.perf_counter() - begun
        self._trained.run(1)
        self._synchronize()
        first = time.perf_counter() - begun
        self._trained.run(iterations - 1)
        self._synchronize()
        seconds = time.perf_counter() - begun
        reserved = torch.cuda.memory_reserved() if self._cuda else None
        times = {"built": built, "first_iteration": first, "seconds": seconds}
        return times | {"iterations": iterations, "reserved": reserved}

    def train(self, batch: int, iterations: int, warmup: int) -> dict:
        """Time training iterations, with the loader.

        Returns:
            "seconds": mean of an iteration; "waiting": the part of it in which the loader was waited for;
            "peak": memory; "foreground": RoIs with a mask per iteration.
        """
        training = self._training()
        training.load(batch, self._seed)
        with self._other_memory(training) as held:
            training.run(warmup)
            seconds = self._time(training.run, iterations)
            peak = self._peak(held)
        return {"seconds": seconds, "waiting": training.waited / iterations, "peak": peak, **training.counts}

    def predict(self, iterations: int, warmup: int, images: int) -> dict:
        """Time inference on single images, from an image on the CPU to masks of its size on the device.

        Args:
            images: number of images that are predicted in turn.

        Returns:
            "seconds": mean per image; "peak": memory; "detections": mean per image.
        """
        if self._predictor is None:
            model = build_for_inference(self._candidate, self._cfg, self._weights)
            self._predictor = _Inference(self._cfg, model, images)
        inference = self._predictor
        with self._other_memory(inference) as held:
            inference.run(warmup)
            seconds = self._time(inference.run, iterations)
            peak = self._peak(held)
        return {"seconds": seconds, "peak": peak, "detections": inference.detections / iterations}

    def profile(self, what: str, iterations: int) -> dict | None:
        """Profile "train" or "predict" with the settings of its last call. Returns None on a CPU.

        See :func:`gn_det.benchmark.gpu.profiling.profile_gpu`.
        """
        run = self._training().run if what == "train" else self._inference().run
        return profile_gpu(run, iterations) if self._cuda else None

    def compare(self, path: str, images: int, save: bool) -> dict | None:
        """Save the detections on the first images to a file, or compare them with those in the file.

        TF32 is off for this, because it changes the outputs as much as another order of summation does.

        Returns:
            What :func:`gn_det.benchmark.outputs.differences` returns; None if ``save`` is set.
        """
        with _without_tf32():
            outputs = self._inference().outputs(images)
        if save:
            torch.save(outputs, path)
            return None
        return differences(torch.load(path, weights_only=False), outputs)

    def operations(self, height: int, width: int, batch: int, repeats: int) -> dict:
        """Time GN + ReLU in bfloat16 and channels_last. See :func:`gn_det.benchmark.operations.operations`."""
        setup = Setup(self._cfg, (height, width), batch, repeats, self._seed)
        with frozen_garbage():
            return operations(setup, (OPERATIONS_VARIANT,))

    def release(self) -> None:
        """Stop the loader, delete the model for inference, and free the memory that is cached."""
        self._predictor = None
        if self._trained:
            self._trained.unload()
        gc.collect()
        if self._cuda:
            torch.cuda.empty_cache()

    def _build_for_training(self) -> nn.Module:
        return build_for_training(self._candidate, self._cfg, self._weights)

    def _training(self) -> "_Training":
        assert self._trained, "start comes first"
        return self._trained

    def _inference(self) -> "_Inference":
        assert self._predictor, "predict comes first"
        return self._predictor

    def _time(self, run: Callable[[int], object], iterations: int) -> float:
        self._synchronize()
        begun = time.perf_counter()
        run(iterations)
        self._synchronize()
        return (time.perf_counter() - begun) / iterations

    def _synchronize(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()

    @contextlib.contextmanager
    def _other_memory(self, part: "_Training | _Inference") -> Iterator[int]:
        """Start to measure the peak memory, and yield the bytes that the other model holds."""
        other = self._predictor if isinstance(part, _Training) else self._trained
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        yield other.held_bytes() if other else 0

    def _peak(self, held: int) -> int | None:
        return torch.cuda.max_memory_allocated() - held if self._cuda else None


class _Training:
    """A model with its optimizer, the loader and the step that its users have.

    Attributes:
        counts: {"foreground": RoIs with a mask in the last iteration}, if it is known.
    """

    def __init__(self, stock: bool, cfg: CfgNode, model: nn.Module):
        self._stock, self._cfg, self._model = stock, cfg, model
        self._optimizer = (detectron2_build_optimizer if stock else build_optimizer)(cfg, model)
        self._batch = 0
        self._loader: Any = None
        self._step: Any = None
        self.counts: dict[str, float] = {}

    def load(self, batch: int, seed: int) -> None:
        """Start the loader for a batch size, unless it runs already."""
        if batch == self._batch:
            return
        self.unload()
        self._batch, self._loader = batch, training_loader(self._cfg, batch, seed)
        build = SimpleTrainer if self._stock else lambda *args: build_train_step(self._cfg, *args)
        self._step = build(self._model, self._loader, self._optimizer)

    def unload(self) -> None:
        """Stop the loader, and free the gradients."""
        self._batch, self._loader, self._step = 0, None, None
        self._optimizer.zero_grad()

    def run(self, iterations: int) -> None:
        self._loader.waited = 0.0
        with EventStorage() as storage:
            for number in range(iterations):
                self._step.iter = number
                self._step.run_step()
                storage.step()
        foreground = storage.latest().get("roi_head/num_fg_samples")
        self.counts = {"foreground": float(foreground[0]) * self._batch} if foreground else {}

    @property
    def waited(self) -> float:
        """Seconds in which the last run waited for the loader."""
        return self._loader.waited

    def held_bytes(self) -> int:
        """Return the bytes of weights, gradients and optimizer state."""
        state = [value for row in self._optimizer.state.values() for value in row.values()]
        gradients = [parameter.grad for parameter in self._model.parameters()]
        return _bytes([*self._model.state_dict().values(), *gradients, *state])


class _Inference:
    """A model and the images that it predicts, one at a time.

    Attributes:
        detections: number in the last run.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, images: int):
        self._cfg, self._model = cfg, model
        self._images = test_images(cfg, images)
        self.detections = 0

    @torch.no_grad()
    def run(self, iterations: int) -> None:
        self.detections = 0
        for number in range(iterations):
            with precision(self._cfg):
                (output,) = self._model([self._images[number % len(self._images)]])
            self.detections += len(output["instances"])

    @torch.no_grad()
    def outputs(self, count: int) -> list:
        """Return the ``Instances`` of the first images, on the CPU."""
        with precision(self._cfg):
            return [self._model([image])[0]["instances"].to("cpu") for image in self._images[:count]]

    def held_bytes(self) -> int:
        """Return the bytes of the weights."""
        return _bytes(list(self._model.state_dict().values()))


def _bytes(values: list) -> int:
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor))


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    convolutions: Any = torch.backends.cudnn
    products = torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = False
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before
