"""From a command line to a benchmark's record, tables and picture."""

import argparse
import contextlib
import dataclasses
import datetime
import gc
import re
import sys
from collections.abc import Callable, Iterator
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
from .coco import measure
from .figure import draw
from .operations import operations
from .sides import NORMS, WAYS, side_name, stock_config
from .stages import Setup
from .table import tables
from .training import training

_SIDES = [side_name(norm, way) for norm in NORMS for way in WAYS]


def coco(setup: Setup) -> dict:
    """COCOeval through hotcoco beside pycocotools, on made-up detections of val2017's size."""
    return measure(repeats=setup.repeats)


# Name of a stage -> what runs it, and the images of a batch where none are asked for.
STAGES: dict[str, tuple[Callable[[Setup], dict], int]] = {
    "inference": (stages.inference, 1),
    "parts": (stages.parts, 1),
    "training": (training, 2),
    "ops": (operations, 2),
    "coco": (coco, 1),
}


def benchmark(args: argparse.Namespace) -> dict:
    """Run the stages, print the tables, and write benchmark.json, .md and .png to ``args.output``. Returns the record.

    Raises:
        GNDetError: an argument that cannot be followed, or a model that stock detectron2 does not have.
    """
    setup, wanted = _setup(args)
    output = _folder(args.output)
    record = _described(setup)
    with quiet(), _frozen_garbage():
        for stage in wanted:
            run, batch = STAGES[stage]
            record["stages"][stage] = run(dataclasses.replace(setup, batch=args.batch or batch))
            save_json(output / "benchmark.json", record)  # after each, as one may take an hour
    text = tables(record)
    (output / "benchmark.md").write_text(text + "\n")
    draw(record, output / "benchmark.png")
    print(text)
    print(f"\nWritten to {output}: benchmark.json, benchmark.md, benchmark.png")
    return record


@contextlib.contextmanager
def _frozen_garbage() -> Iterator[None]:
    """No garbage collection of what was made before, which would disturb the timings."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _setup(args: argparse.Namespace) -> tuple[Setup, list[str]]:
    wanted = _words(args.stage, list(STAGES), "--stage")
    sides = _words(args.sides, _SIDES, "--sides", ";") if args.sides else []
    if not re.fullmatch(r"\d+x\d+", args.size.strip()):
        raise GNDetError(f"--size is {args.size!r}; it is HEIGHTxWIDTH in pixels, as 800x1216.")
    if args.batch is not None and args.batch < 1:
        raise GNDetError(f"--batch is {args.batch}; it is a number of images, and at least 1.")
    if args.repeats < 1:
        raise GNDetError(f"--repeats is {args.repeats}; it is a number of rounds, and at least 1.")
    device = choose_device(args.device, "--device")
    cfg = load_config(args.config, args.opts)
    cfg.MODEL.DEVICE, cfg.SEED, cfg.DATASETS.TEST = device, args.seed, ()
    stock_config(cfg)  # says so where there is none
    return Setup(cfg, image_size(cfg, args.size), args.batch or 1, args.repeats, args.seed, sides), wanted


def _words(text: str, known: list[str], option: str, separator: str = ",") -> list[str]:
    words = [word.strip() for word in text.split(separator) if word.strip()]
    unknown = [word for word in words if word not in known]
    if unknown or not words:
        named = f"{unknown[0]!r} is none of" if unknown else "names none of"
        raise GNDetError(f"{option} {text!r}: {named} {(separator + ' ').join(known)}.")
    return words


def _folder(path: str) -> Path:
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "benchmark.md").touch()
    except OSError as error:
        raise GNDetError(f"--output {path} cannot be written: {error.strerror}.") from None
    return folder


def _described(setup: Setup) -> dict:
    """What the numbers need beside them."""
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
        "tf32": tf32 if setup.device == "cuda" else None,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "stages": {},
    }
