"""Start the candidates, run them in turn, and keep the record."""

import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from ..timing import median_seconds
from .candidates import CANDIDATES, FP32, save_weights
from .data import register, test_images
from .plan import Plan
from .process import Process
from .report import format_rate

OPERATIONS = ("gn_det bf16 channels_last",)  # candidates that time GN + ReLU
_READY_SECONDS = 120.0
_CONTEXT_BYTES = 2**30  # what a process takes from the GPU besides its tensors, at most
_USABLE = 0.9  # share of the GPU's memory that the processes may fill
_FIRST_WARMUP = 3  # iterations
_LEARNING_RATE = 1e-9  # so low that the weights, and with them the work per iteration, do not change
# Random weights propose few boxes near objects. With this overlap, about as many RoIs count as foreground as with
# trained weights and 0.5.
_OVERLAP = 0.1


def benchmark_config(cfg: CfgNode) -> CfgNode:
    """Return a copy of the config with the changes that all candidates share."""
    own = cfg.clone()
    own.MODEL.WEIGHTS = ""
    own.DATALOADER.NUM_WORKERS = min(own.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)
    own.SOLVER.BASE_LR = _LEARNING_RATE
    own.MODEL.ROI_HEADS.IOU_THRESHOLDS = [_OVERLAP]
    return own


def compare_on_gpu(
    cfg: CfgNode,
    size: tuple[int, int],
    names: Sequence[str],
    plan: Plan,
    folder: Path,
    train_json: str | None,
    train_images: str | None,
    save: Callable[[dict], object],
) -> dict:
    """Compare the candidates on a GPU, or in a reduced form on a CPU.

    What happens is printed to stderr, and what the processes print goes to ``folder/logs``.

    Args:
        cfg: a config with GN.
        size: (height, width) of the image for the shapes of GN + ReLU.
        names: keys of CANDIDATES; all if empty.
        folder: for the logs, the annotations and the generated images.
        train_json: annotations in COCO format; None: images are generated.
        train_images: the folder of the images.
        save: called with the record after each command of a candidate.

    Returns:
        A dict with the keys:
            "device": ``MODEL.DEVICE``.
            "data": "source" (a sentence), "images" and "objects" (numbers).
            "plan": the attributes of the plan.
            "overlap": IoU from which on a RoI counts as foreground.
            "seconds": the whole time.
            "candidates": {name: dict}, each with the keys below as far as they were measured. A row that could not
                be measured has "error", a sentence; so has one with fewer rounds than planned.
                "options", "environment": of the candidate. "warnings": what gn_det has logged.
                "start": see :meth:`Session.start`.
                "training": {batch size: row}; "inference": {"1": row}. A row has "rounds" (seconds of an iteration,
                per round), "seconds" and "spread" (their median, minimum and maximum), "interleaved" (whether the
                candidates ran in turn), the medians of what :meth:`Session.train` and :meth:`Session.predict`
                return, "gpu" (:func:`profile_gpu`), and "difference" (:meth:`Session.compare`).
                "operations": see :func:`gn_det.benchmark.operations.operations`.
    """
    own = benchmark_config(cfg)
    data = register(own, folder, train_json, train_images)
    with tempfile.TemporaryDirectory(prefix="gn_det_benchmark_") as scratch:
        run = _Run(own, size, list(names) or list(CANDIDATES), plan, data, save)
        try:
            run.open(Path(scratch), folder / "logs")
            run.measure()
        finally:
            run.close()
    return run.record


class _Run:
    """The processes of the candidates, and the record."""

    def __init__(
        self,
        cfg: CfgNode,
        size: tuple[int, int],
        names: list[str],
        plan: Plan,
        data: dict,
        save: Callable[[dict], object],
    ):
        self._cfg, self._size, self._names, self._plan, self._data, self._save = cfg, size, names, plan, data, save
        self._begun = time.monotonic()
        self._processes: dict[str, Process] = {}
        self._scratch = Path()
        on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
        self._memory = torch.cuda.get_device_properties(cfg.MODEL.DEVICE).total_memory if on_gpu else None
        self._rows: dict[str, dict] = {
            name: {"options": dict(CANDIDATES[name].options), "environment": dict(CANDIDATES[name].environment)}
            for name in names
        }
        self.record: dict[str, Any] = {
            "device": cfg.MODEL.DEVICE,
            "data": {key: data[key] for key in ("source", "images", "objects")},
            "plan": vars(plan) | {"batches": list(plan.batches)},
            "overlap": _OVERLAP,
            "seconds": 0.0,
            "candidates": self._rows,
        }

    def open(self, scratch: Path, logs: Path) -> None:
        """Start the processes, which all import their modules at the same time, and make the weights."""
        self._scratch = scratch
        logs.mkdir(parents=True, exist_ok=True)
        self._say(f"starting {len(self._names)} processes; {self._data['source']}")
        for name in self._names:
            candidate, file = CANDIDATES[name], name.replace("*", "").replace(", ", "-").replace(" ", "_")
            weights = str(self._weights(candidate.norm))
            job = {"name": name, "config": self._cfg.dump(), "weights": weights, "data": self._data}
            self._processes[name] = Process(job, candidate.environment, scratch / file, logs / f"{file}.log")
        images = [{**row, "image": row["image"].to(self._cfg.MODEL.DEVICE)} for row in test_images(self._cfg, 1)]
        for norm in {CANDIDATES[name].norm for name in self._names}:
            save_weights(self._cfg, norm, images, self._weights(norm))
        if self._memory:
            torch.cuda.empty_cache()
        for process in self._processes.values():
            process.wait_until_ready(min(_READY_SECONDS, self._seconds_left()))

    def measure(self) -> None:
        """Measure everything, what the targets need first, and compiled candidates later, as they take long to start."""
        late = list(filter(_is_compiled, self._names))
        first = self._plan.batches[0]
        for names in filter(None, ([name for name in self._names if name not in late], late)):
            self._start(names)
            self._train(names, first, profiles=True)
            self._predict(names)
            self._operations(names)
            for batch in self._plan.batches[1:2]:
                self._train(names, batch, profiles=True)
        for batch in self._plan.batches[2:]:
            self._train(self._names, batch, profiles=False)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes.values():
            process.close()

    def _start(self, names: list[str]) -> None:
        for name in names:
            limit = self._plan.step_seconds if _is_compiled(name) else self._plan.start_seconds
            arguments = {"batch": self._plan.batches[0], "iterations": self._plan.start_iterations}
            row = self._row(*self._call(name, "start", limit, **arguments))
            self._rows[name]["start"] = row
            times = "first iteration after {first_iteration:.1f} s, {iterations} after {seconds:.1f} s"
            self._say(f"start: {name}: {row['error'] if 'error' in row else times.format(**row)}")
            if not self._fits(self._plan.batches[0]):
                self._call(name, "release")

    def _train(self, names: list[str], batch: int, profiles: bool) -> None:
        arguments = {"batch": batch, "iterations": self._plan.iterations(batch)}
        started = [name for name in names if "seconds" in self._rows[name]["start"]]
        for name in names:
            if name not in started:  # keep the reason
                self._rows[name].setdefault("training", {})[str(batch)] = dict(self._rows[name]["start"])
        self._compare("training", batch, started, self._fits(batch), profiles, "train", arguments)

    def _predict(self, names: list[str]) -> None:
        arguments = {"iterations": self._plan.iterations(1), "images": self._plan.predicted}
        self._compare("inference", 1, names, True, True, "predict", arguments)

    def _operations(self, names: list[str]) -> None:
        height, width = self._size
        arguments = {"height": height, "width": width, "batch": self._plan.batches[0], "repeats": self._plan.rounds}
        for name in [name for name in OPERATIONS if name in names]:
            row = self._row(*self._call(name, "operations", **arguments))
            self._rows[name]["operations"] = row
            self._say(f"GN + ReLU: {name}: {row.get('error') or 'done'}")

    def _compare(
        self, stage: str, batch: int, names: list[str], interleaved: bool, profiles: bool, do: str, arguments: dict
    ) -> None:
        """Run the rounds of one stage: all candidates in turn, or each with all of its rounds in a row."""
        if not names:
            return
        turns = "in turn" if interleaved else "one after the other, as their memory does not fit together"
        self._say(f"{stage}, batch {batch}, {turns}: {'; '.join(names)}")
        if not interleaved:
            self._release(self._names)
        for group in [names] if interleaved else [[name] for name in names]:
            results: dict[str, list[dict]] = {name: [] for name in group}
            errors: dict[str, str] = {}
            for number in range(self._plan.rounds):
                warmup = _FIRST_WARMUP if number == 0 else int(interleaved)
                for name in (name for name in group if name not in errors):
                    result, error = self._call(name, do, warmup=warmup, **arguments)
                    if error:
                        errors[name] = error
                    else:
                        results[name].append(result)
            for name in group:
                row = _summarize(results[name], errors.get(name)) | {"interleaved": len(group) > 1}
                self._rows[name].setdefault(stage, {})[str(batch)] = row
                if "error" not in row:
                    self._look_closer(name, row, do, profiles)
                self._say(f"{stage}, batch {batch}: {name}: {_describe(row, batch)}")
            self._release(group)

    def _look_closer(self, name: str, row: dict, do: str, profiles: bool) -> None:
        """Profile a candidate and compare its detections, and add both to its row."""
        if profiles:
            row["gpu"], error = self._call(name, "profile", what=do, iterations=self._plan.profiled)
            row |= {"error": f"profile: {error}"} if error else {}
        if do == "predict" and CANDIDATES[name].norm == "GN" and FP32 in self._names:
            arguments: dict[str, Any] = {"path": str(self._scratch / "outputs.pth"), "images": self._plan.compared}
            difference, error = self._call(name, "compare", save=name == FP32, **arguments)
            row |= {"error": f"outputs: {error}"} if error else {"difference": difference}

    def _release(self, names: list[str]) -> None:
        for name in names:
            self._call(name, "release")

    def _call(self, name: str, do: str, limit: float | None = None, **arguments: Any) -> tuple[Any, str | None]:
        """Run a command in the process of a candidate, within the time that is left, and save the record.

        Args:
            limit: in seconds; by default ``step_seconds`` of the plan.
        """
        limit, seconds = limit or self._plan.step_seconds, self._seconds_left()
        over = f"not measured, because the {self._plan.minutes:g} minutes were over"
        if seconds < 1:
            return None, over
        process = self._processes[name]
        result, error = process.call(min(limit, seconds), do, **arguments)
        if error and seconds < limit:
            error = re.sub(r"^did not answer within \d+ s", over, error)
        self._rows[name]["warnings"] = process.warnings
        self.record["seconds"] = time.monotonic() - self._begun
        self._save(self.record)
        return result, error

    def _fits(self, batch: int) -> bool:
        """Return whether all processes that have started can keep the memory for a batch size at the same time."""
        if self._memory is None:
            return True
        reserved = [self._rows[name].get("start", {}).get("reserved") or 0 for name in self._names]
        needed = sum(reserved) * max(batch / self._plan.batches[0], 1) + len(reserved) * _CONTEXT_BYTES
        return needed < _USABLE * self._memory

    def _row(self, result: dict | None, error: str | None) -> dict:
        return {"error": error} if error else dict(result or {})

    def _weights(self, norm: str) -> Path:
        return self._scratch / f"{norm}.pth"

    def _seconds_left(self) -> float:
        return 60 * self._plan.minutes - (time.monotonic() - self._begun)

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._begun:6.1f} s  {text}", file=sys.stderr, flush=True)


def _is_compiled(name: str) -> bool:
    return bool(CANDIDATES[name].options.get("TRAIN.COMPILE"))


def _summarize(rounds: list[dict], error: str | None) -> dict:
    """Return the row for the rounds of a candidate; see :func:`compare_on_gpu`."""
    row: dict = {"error": error} if error else {}
    if not rounds:
        return row
    seconds = [result["seconds"] for result in rounds]
    others = {key: [result[key] for result in rounds if result.get(key) is not None] for key in rounds[0]}
    row |= {key: statistics.median(values) if values else None for key, values in others.items()}
    return row | {"rounds": seconds, **median_seconds(seconds)}


def _describe(row: dict, batch: int) -> str:
    return f"{format_rate(batch, row)} images/s" if "seconds" in row else row["error"]
