"""Does GN help here? The same training with each norm at each batch size, as the paper's Figure 1 and Table 5 have it.

All else is equal: data, schedule in epochs, and the learning rate by the linear rule (Section 4.1: 0.1 x batch / 256).
"""

import argparse
import dataclasses
import multiprocessing
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from tqdm import tqdm

from ..config.checks import check_config
from ..config.files import load_config
from ..errors import GNDetError, did_you_mean
from ..evaluation.records import config_digest, make_record, read_record
from ..files import save_json
from ..launch.arguments import config_of
from ..launch.prepare import prepare
from ..launch.processes import launch
from ..launch.run import main
from ..launch.tool import run_tool
from ..modeling.norm import NORM_KEYS, NORMS, get_key
from .norm_tables import draw_study, study_tables

_DIVERGED = 3  # exit code of a training whose loss became infinite or NaN


@dataclasses.dataclass(frozen=True)
class Variant:
    """One training: a norm as in the config, images a batch, a seed."""

    norm: str
    batch: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.norm}-batch{self.batch}-seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.norm}, batch {self.batch}, seed {self.seed}"


def plan(norms: Sequence[str], batches: Sequence[int], seeds: int) -> list[Variant]:
    """Every norm at every batch size with every seed from 1; one seed of all comes before the next of any.

    Raises:
        GNDetError: an unknown norm, or a number below 1.
    """
    norms = ["FrozenBN" if norm == "BN*" else norm for norm in norms]
    for norm in norms:
        if norm not in NORMS or not norm:
            raise GNDetError(f"There is no norm {norm!r}{did_you_mean(norm, [n for n in NORMS if n])}.")
    if min([*batches, seeds]) < 1:
        raise GNDetError("Batch sizes and the number of seeds must be 1 or more.")
    unique_norms, unique_batches = dict.fromkeys(norms), dict.fromkeys(batches)
    return [Variant(n, b, s) for s in range(1, seeds + 1) for b in unique_batches for n in unique_norms]


def overrides(cfg: CfgNode, variant: Variant, weights: dict[str, str]) -> list[str]:
    """The ``KEY VALUE`` pairs that make the base config ``cfg`` into the variant.

    The norm goes wherever the base config has one, but for BN*: that is frozen in the backbone, and FPN and heads have
    no norm, as in the paper's baseline. The schedule follows detectron2's own linear rule.

    Args:
        weights: norm -> ``MODEL.WEIGHTS``; the base config's for norms that are not in it.
    """
    pairs: dict[str, object] = {"SEED": variant.seed}
    for key in NORM_KEYS:
        if get_key(cfg, key):
            frozen_elsewhere = variant.norm == "FrozenBN" and key != "MODEL.RESNETS.NORM"
            pairs[key] = "" if frozen_elsewhere else variant.norm
    pairs["MODEL.WEIGHTS"] = weights.get(variant.norm, cfg.MODEL.WEIGHTS)
    pairs["MODEL.GN.FROZENBN_FROM_SCRATCH"] = variant.norm == "FrozenBN" and not pairs["MODEL.WEIGHTS"]
    scaled = cfg.clone()
    scaled.SOLVER.REFERENCE_WORLD_SIZE = cfg.SOLVER.IMS_PER_BATCH  # "workers" of one image each
    scaled = DefaultTrainer.auto_scale_workers(scaled, variant.batch)
    for name in ("IMS_PER_BATCH", "BASE_LR", "MAX_ITER", "STEPS", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
        pairs[f"SOLVER.{name}"] = scaled.SOLVER[name]
    pairs["TEST.EVAL_PERIOD"] = scaled.TEST.EVAL_PERIOD
    return [str(part) for pair in pairs.items() for part in pair]


class Study:
    """The variants of one base config, each trained in a folder of its own below ``OUTPUT_DIR``."""

    def __init__(self, args: argparse.Namespace, variants: list[Variant], weights: dict[str, str]):
        """Check everything that can be checked before hours are spent.

        Args:
            args: of :func:`gn_det.launch.arguments.argument_parser`.
            weights: norm -> ``MODEL.WEIGHTS``.

        Raises:
            GNDetError: a variant cannot work, or ``OUTPUT_DIR`` holds a study of something else.
        """
        self.args, self.variants = args, variants
        self.base = config_of(args)
        self.folder = Path(self.base.OUTPUT_DIR)
        _check_weights(self.base, variants, weights)
        self.opts = {v: [*args.opts, *overrides(self.base, v, weights)] for v in variants}
        cfg = prepare(self._arguments(variants[0]))
        for variant in variants:
            self._check(variant, cfg)
        self._remember(cfg)

    def _arguments(self, variant: Variant) -> argparse.Namespace:
        folder = self.folder / variant.name
        opts = [*self.opts[variant], "OUTPUT_DIR", str(folder)]
        resume = (folder / "last_checkpoint").is_file()
        return argparse.Namespace(**{**vars(self.args), "opts": opts, "resume": resume, "eval_only": False})

    def _check(self, variant: Variant, prepared: CfgNode) -> None:
        cfg = load_config(self.args.config_file, self.opts[variant])
        cfg.DATASETS = prepared.DATASETS  # what the data flags changed
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = prepared.MODEL.ROI_HEADS.NUM_CLASSES
        try:
            check_config(cfg)
        except GNDetError as error:
            raise GNDetError(f"{variant}: {error}") from None

    def _remember(self, cfg: CfgNode) -> None:
        if not cfg.DATASETS.TEST:
            raise GNDetError("A norm study compares AP: give --val-json and --val-images, or DATASETS.TEST.")
        base = self.base.clone()
        base.OUTPUT_DIR, base.DATASETS = "", cfg.DATASETS
        now = {"config": base.MODEL.GN.CONFIG, "recipe": config_digest(base)}
        path = self.folder / "study.json"
        if path.is_file() and read_record(path) != now:
            raise GNDetError(f"{self.folder} holds a norm study with another config or data: name another OUTPUT_DIR.")
        save_json(path, now)

    def result_file(self, variant: Variant) -> Path:
        """Where the variant's record lies once it is done."""
        return self.folder / "records" / f"{variant.name}.json"

    def run(self, jobs: int = 1, say: Callable[[str], None] = print) -> list[str]:
        """Train what is not done yet, ``jobs`` at a time, and say how far it is.

        Returns:
            a sentence for each variant that failed otherwise than by diverging, which is a result.
        """
        if jobs < 1:
            raise GNDetError(f"--jobs is {jobs}; it is the number of trainings at a time, and at least 1.")
        todo = deque(v for v in self.variants if not self.result_file(v).is_file())
        done, total, failures = len(self.variants) - len(todo), len(self.variants), []
        if done:
            say(f"{done} of {total} trainings are done already.")
        begun = time.monotonic()
        for trained, (variant, seconds, failure) in enumerate(self._finished(todo, jobs), start=1):
            left = (total - done - trained) * (time.monotonic() - begun) / trained
            if failure:
                failures.append(f"{variant}: {failure}")
            what = failure or _outcome(read_record(self.result_file(variant)))
            took, rest = tqdm.format_interval(seconds), tqdm.format_interval(left)
            say(f"[{done + trained}/{total}] {variant}: {what} ({took}; about {rest} left)")
        return failures

    def report(self) -> list[Path]:
        """Write the tables (``study.md``) and the picture (``study.png``) of all that is done, and return their paths."""
        records = [read_record(path) for path in sorted((self.folder / "records").glob("*.json"))]
        if not records:
            return []
        table, picture = self.folder / "study.md", self.folder / "study.png"
        table.write_text(study_tables(records) + "\n")
        draw_study(records, picture)
        return [table, picture]

    def _finished(self, todo: deque[Variant], jobs: int) -> Iterator[tuple[Variant, float, str]]:
        """Yield each variant as it ends, with its seconds and what went wrong."""
        running: dict = {}  # process -> its slot, variant and when it began
        try:
            while todo or running:
                free = [slot for slot in range(jobs) if slot not in {slot for slot, *_ in running.values()}]
                while todo and free:
                    variant, slot = todo.popleft(), free.pop(0)
                    running[self._start(variant, slot, jobs)] = slot, variant, time.monotonic()
                ready = wait([process.sentinel for process in running])
                for process in [p for p in running if p.sentinel in ready]:
                    _, variant, begun = running.pop(process)
                    process.join()
                    yield variant, time.monotonic() - begun, self._end(variant, process.exitcode)
        finally:
            for process in running:
                process.terminate()

    def _start(self, variant: Variant, slot: int, jobs: int):
        args = self._arguments(variant)
        folder = self.folder / variant.name
        folder.mkdir(parents=True, exist_ok=True)
        process = multiprocessing.get_context("spawn").Process(
            target=_train, args=(args, str(folder / "output.txt"), slot, jobs)
        )
        process.start()
        return process

    def _end(self, variant: Variant, code: int) -> str:
        """Keep the variant's record, or say in a sentence why there is none."""
        folder = self.folder / variant.name
        output = (folder / "output.txt").read_text(errors="replace")
        if code == _DIVERGED:
            cfg = load_config(str(folder / "config.yaml"))
            record = make_record(cfg, cfg.DATASETS.TEST[0], {})
            where = re.findall(r"NaN at iteration=(\d+)", output)
            record["diverged"] = int(where[-1]) if where else None  # where the proposals say it, they do not say when
        else:
            records = sorted((folder / "records").glob("*.json"))  # the last iteration is last
            if code or not records:
                said = re.findall(r"^error: (.*)", output, re.MULTILINE)
                return said[-1] if said else f"it ended with code {code}; see {folder / 'output.txt'}"
            record = read_record(records[-1])
        save_json(self.result_file(variant), record | {"variant": dataclasses.asdict(variant)})
        return ""


def _check_weights(cfg: CfgNode, variants: list[Variant], weights: dict[str, str]) -> None:
    """Weights belong to one norm: GN's in a BN model, or the reverse, are no comparison."""
    missing = {v.norm for v in variants} - weights.keys() - {cfg.MODEL.RESNETS.NORM}
    if cfg.MODEL.WEIGHTS and missing:
        raise GNDetError(
            f"MODEL.WEIGHTS is {cfg.MODEL.WEIGHTS}, which was trained with {cfg.MODEL.RESNETS.NORM or 'no norm'}: name the "
            f"weights of the others too (--weights {min(missing)}=FILE), or train all from scratch (MODEL.WEIGHTS '')."
        )


def _train(args: argparse.Namespace, output: str, slot: int, jobs: int) -> None:
    """One training in a process of its own; what it prints goes to the file ``output``."""
    with open(output, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if gpus := torch.cuda.device_count():
        if args.num_gpus == 1:
            os.environ["CUDA_VISIBLE_DEVICES"] = str(slot % gpus)
    elif jobs > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    try:
        run_tool(lambda: launch(main, args))
    except Exception as error:
        if "FloatingPointError" not in f"{type(error).__name__} {error}":
            raise
        sys.exit(_DIVERGED)


def _outcome(record: dict) -> str:
    if "diverged" in record:
        return "diverged" + (f" at iteration {record['diverged']}" if record["diverged"] else "")
    return ", ".join(f"{kind} AP {record[kind]['AP']:.1f}" for kind in ("box", "mask") if record[kind])
