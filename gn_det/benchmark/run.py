"""Run a benchmark from command-line arguments, and write its record, tables and picture."""

import argparse
import dataclasses
import datetime
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from ..acceleration.device import choose_device
from ..config.files import load_config
from ..cost.model import image_size
from ..errors import GNDetError
from ..evaluation.records import changed_keys, environment
from ..files import save_json
from ..quiet import quiet
from . import stages
from .candidates import IMPLEMENTATIONS, NORMS, candidate_name, stock_config
from .coco import measure
from .figure import draw
from .gpu import candidates as gpu_candidates
from .gpu import plan
from .gpu.stage import compare_on_gpu
from .host import host
from .operations import operations
from .stages import Setup
from .table import tables
from .timing import frozen_garbage
from .training import training

_CANDIDATES = [candidate_name(norm, implementation) for norm in NORMS for implementation in IMPLEMENTATIONS]


def coco(setup: Setup) -> dict:
    """Time COCO evaluation by hotcoco and by pycocotools. See :func:`gn_det.benchmark.coco.measure`."""
    return measure(repeats=setup.repeats)


# Name of a stage -> (function that runs it, default number of images per batch).
STAGES: dict[str, tuple[Callable[[Setup], dict], int]] = {
    "inference": (stages.inference, 1),
    "parts": (stages.parts, 1),
    "training": (training, 2),
    "ops": (operations, 2),
    "host": (host, 1),
    "coco": (coco, 1),
}
GPU = "gpu"  # a stage that runs alone, with candidates of its own
_REPEATS = 5


def benchmark(args: argparse.Namespace) -> dict:
    """Run the chosen stages, print the tables, and write all results to ``args.output``.

    The files are benchmark.json, benchmark.md and, except for the stage gpu, benchmark.png.

    Args:
        args: arguments of ``gn-det benchmark``.

    Returns:
        The record, as in benchmark.json.

    Raises:
        GNDetError: an argument is not valid, or stock detectron2 cannot build the model.
    """
    setup, chosen = _setup(args)
    output = _create_folder(args.output)
    record = _describe_run(setup)
    files = ["benchmark.json", "benchmark.md", "logs" if chosen == [GPU] else "benchmark.png"]

    def save(stage: str, result: dict) -> None:  # after each step, because a stage may take an hour
        record["stages"][stage] = result
        save_json(output / "benchmark.json", record)

    with quiet(), frozen_garbage():
        if chosen == [GPU]:
            save(GPU, _run_gpu_stage(args, setup, output, lambda result: save(GPU, result)))
        else:
            for stage in chosen:
                run, batch = STAGES[stage]
                save(stage, run(dataclasses.replace(setup, batch=args.batch[0] if args.batch else batch)))
    text = tables(record)
    (output / "benchmark.md").write_text(text + "\n")
    if chosen != [GPU]:
        draw(record, output / "benchmark.png")
    print(text)
    print(f"\nWritten to {output}: {', '.join(files)}")
    return record


def _run_gpu_stage(args: argparse.Namespace, setup: Setup, output: Path, save: Callable[[dict], object]) -> dict:
    chosen = plan.Plan() if setup.device.startswith("cuda") else plan.ON_CPU
    chosen = dataclasses.replace(chosen, rounds=setup.repeats, minutes=args.minutes)
    if args.timeout:
        chosen = dataclasses.replace(chosen, step_seconds=args.timeout, start_seconds=args.timeout)
    if args.batch:
        chosen = dataclasses.replace(chosen, batches=args.batch)
    data = (args.train_json, args.train_images)
    return compare_on_gpu(setup.cfg, setup.size, setup.candidates, chosen, output, *data, save)


def _setup(args: argparse.Namespace) -> tuple[Setup, list[str]]:
    chosen = _parse_names(args.stage, [*STAGES, GPU], "--stage")
    on_gpu = chosen == [GPU]
    if GPU in chosen and not on_gpu:
        raise GNDetError(f"--stage is {args.stage!r}; the stage {GPU} runs alone: use a second command for the others.")
    known = list(gpu_candidates.CANDIDATES) if on_gpu else _CANDIDATES
    candidates = _parse_names(args.sides, known, "--sides", ";") if args.sides else []
    if not re.fullmatch(r"\d+x\d+", args.size.strip()):
        raise GNDetError(f"--size is {args.size!r}; it must be HEIGHTxWIDTH in pixels, such as 800x1216.")
    if args.batch and (min(args.batch) < 1 or len(args.batch) > 1 and not on_gpu):
        raise GNDetError(
            f"--batch-size is {','.join(map(str, args.batch))}; it is the number of images per batch and must be 1 or more, "
            f"and only the stage {GPU} takes several numbers."
        )
    if args.repeats is not None and args.repeats < 1:
        raise GNDetError(f"--repeats is {args.repeats}; it is the number of timed rounds and must be 1 or more.")
    for option, number in (("--minutes", args.minutes), ("--timeout", args.timeout)):
        if number is not None and number <= 0:
            raise GNDetError(f"{option} is {number:g}; it must be more than 0.")
    if bool(args.train_json) != bool(args.train_images) or args.train_json and not on_gpu:
        raise GNDetError(f"--train-json and --train-images go together, with --stage {GPU}.")
    device = choose_device(args.device, "--device")
    cfg = load_config(args.config, args.opts)
    cfg.MODEL.DEVICE, cfg.SEED, cfg.DATASETS.TEST = device, args.seed, ()
    stock_config(cfg)  # raises GNDetError before anything runs if stock detectron2 cannot build the model
    rounds = plan.Plan.rounds if on_gpu else _REPEATS
    repeats = args.repeats or (rounds if device.startswith("cuda") or not on_gpu else plan.ON_CPU.rounds)
    return Setup(cfg, image_size(cfg, args.size), 1, repeats, args.seed, candidates), chosen


def _parse_names(text: str, known: list[str], option: str, separator: str = ",") -> list[str]:
    names = [name.strip() for name in text.split(separator) if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        problem = f"{unknown[0]!r} is not one of" if unknown else "it must name at least one of"
        raise GNDetError(f"{option} is {text!r}; {problem} {(separator + ' ').join(known)}.")
    return names


def _create_folder(path: str) -> Path:
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "benchmark.md").touch()
    except OSError as error:
        raise GNDetError(f"--output {path} cannot be written: {error.strerror}.") from None
    return folder


def _describe_run(setup: Setup) -> dict:
    """Return a record without results: config, command, versions and hardware."""
    cudnn = torch.backends.cudnn
    tf32 = {"convolutions": cudnn.allow_tf32, "matrix products": torch.backends.cuda.matmul.allow_tf32}
    return {
        "config": setup.cfg.MODEL.GN.CONFIG,
        "changed": changed_keys(setup.cfg),
        "command": " ".join(["benchmark.py", *sys.argv[1:]]),
        "weights": "random",
        "seed": setup.seed,
        "repeats": setup.repeats,
        **environment(setup.device),
        "threads": torch.get_num_threads(),
        "tf32": tf32 if setup.device.startswith("cuda") else None,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "stages": {},
    }
