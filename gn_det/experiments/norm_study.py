"""Train the same model with each norm at each batch size (the paper's Figure 1 and Table 5).

Everything else is equal: the data, the schedule in epochs, and the learning rate, which follows the linear
scaling rule (Section 4.1: 0.1 x batch / 256).
"""

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from tqdm import tqdm

from ..config.checks import check_config, datasets_of_run
from ..config.files import load_config
from ..data.identity import dataset_identities, read_identities, same_data
from ..errors import GNDetError, did_you_mean
from ..evaluation.comparison import check_test_data, train_data_of
from ..evaluation.records import config_digest, make_record, read_record
from ..files import save_json, save_text
from ..launch.arguments import config_from_args
from ..launch.output_dir import is_trained
from ..launch.owner import owned
from ..launch.prepare import prepare
from ..launch.processes import launch
from ..launch.run import main
from ..launch.tool import run_tool
from ..modeling.norm import NORM_KEYS, NORMS, get_key
from ..training.guards.finite import DIVERGED
from ..training.guards.signals import SIGNALS, Stopped, handling
from .norm_tables import draw_study, study_tables


@dataclasses.dataclass(frozen=True)
class Variant:
    """The norm, batch size and seed of one training run."""

    norm: str  # as in the config
    batch: int  # images per batch
    seed: int

    @property
    def name(self) -> str:
        """The name of the folder and of the record of the training."""
        return f"{self.norm}-batch{self.batch}-seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.norm}, batch {self.batch}, seed {self.seed}"


def plan(norms: Sequence[str], batches: Sequence[int], seeds: int) -> list[Variant]:
    """Return the variants to train: every norm at every batch size, with the seeds 1 to ``seeds``.

    All variants with seed 1 come first, then all with seed 2, and so on.

    Args:
        norms: names as in the config; "BN*" is accepted for "FrozenBN".

    Raises:
        GNDetError: a norm is unknown, or a number is below 1.
    """
    norms = ["FrozenBN" if norm == "BN*" else norm for norm in norms]
    for norm in norms:
        if norm not in NORMS or not norm:
            raise GNDetError(f"--norms: {norm!r} is not a norm{did_you_mean(norm, [n for n in NORMS if n])}.")
    if min([*batches, seeds]) < 1:
        raise GNDetError(
            f"--batch-size is {','.join(map(str, batches))} and --seeds is {seeds}; all of them must be 1 or more."
        )
    unique_norms, unique_batches = dict.fromkeys(norms), dict.fromkeys(batches)
    return [Variant(n, b, s) for s in range(1, seeds + 1) for b in unique_batches for n in unique_norms]


def overrides(cfg: CfgNode, variant: Variant, weights: dict[str, str]) -> list[str]:
    """Return the ``KEY VALUE`` pairs that turn the base config ``cfg`` into the variant's config.

    The variant's norm replaces every norm of the base config. Only FrozenBN (BN*) is different: the backbone
    gets it, and FPN and heads get no norm, as in the paper's baseline. The schedule is scaled by
    ``DefaultTrainer.auto_scale_workers``, detectron2's linear rule.

    Args:
        weights: {norm: ``MODEL.WEIGHTS``}; other norms use the weights of the base config.
    """
    pairs: dict[str, object] = {"SEED": variant.seed}
    for key in NORM_KEYS:
        if get_key(cfg, key):
            no_norm = variant.norm == "FrozenBN" and key != "MODEL.RESNETS.NORM"
            pairs[key] = "" if no_norm else variant.norm
    pairs["MODEL.WEIGHTS"] = weights.get(variant.norm, cfg.MODEL.WEIGHTS)
    pairs["MODEL.GN.FROZENBN_FROM_SCRATCH"] = variant.norm == "FrozenBN" and not pairs["MODEL.WEIGHTS"]
    scaled = cfg.clone()
    scaled.SOLVER.REFERENCE_WORLD_SIZE = cfg.SOLVER.IMS_PER_BATCH  # treat each image as a worker
    scaled = DefaultTrainer.auto_scale_workers(scaled, variant.batch)
    for name in ("IMS_PER_BATCH", "BASE_LR", "MAX_ITER", "STEPS", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
        pairs[f"SOLVER.{name}"] = scaled.SOLVER[name]
    pairs["TEST.EVAL_PERIOD"] = scaled.TEST.EVAL_PERIOD
    return [str(part) for pair in pairs.items() for part in pair]


class Study:
    """Train the variants of one base config, each in a subfolder of ``OUTPUT_DIR``."""

    def __init__(self, args: argparse.Namespace, variants: list[Variant], weights: dict[str, str]):
        """Check all variants before the first training starts.

        Args:
            args: arguments from :func:`gn_det.launch.arguments.argument_parser`.
            variants: see :func:`plan`.
            weights: {norm: ``MODEL.WEIGHTS``}.

        Raises:
            GNDetError: the config of a variant is not valid, or ``OUTPUT_DIR`` holds a study with another
                config or other data.
        """
        self.args, self.variants = args, variants
        self.base = config_from_args(args)
        self.folder = Path(self.base.OUTPUT_DIR)
        _check_weights(self.base, variants, weights)
        self.opts = {v: [*args.opts, *overrides(self.base, v, weights)] for v in variants}
        cfg = prepare(self._arguments(variants[0]))
        for variant in variants:
            self._check(variant, cfg)
        self._check_output_dir(cfg)

    def _arguments(self, variant: Variant) -> argparse.Namespace:
        folder = self.folder / variant.name
        opts = [*self.opts[variant], "OUTPUT_DIR", str(folder)]
        resume = is_trained(folder)
        return argparse.Namespace(**{**vars(self.args), "opts": opts, "resume": resume, "eval_only": False})

    def _check(self, variant: Variant, prepared: CfgNode) -> None:
        cfg = load_config(self.args.config_file, self.opts[variant])
        cfg.DATASETS = prepared.DATASETS  # may come from --train-json and --val-json
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = prepared.MODEL.ROI_HEADS.NUM_CLASSES
        try:
            check_config(cfg)
        except GNDetError as error:
            raise GNDetError(f"{variant}: {error}") from None

    def _check_output_dir(self, cfg: CfgNode) -> None:
        """Write study.json, which identifies the study, or compare it with the existing one."""
        if not cfg.DATASETS.TEST:
            raise GNDetError(
                "A norm study needs data to evaluate on: pass --val-json and --val-images, or set DATASETS.TEST."
            )
        base = self.base.clone()
        base.OUTPUT_DIR, base.DATASETS = "", cfg.DATASETS
        data = dataset_identities(datasets_of_run(cfg, eval_only=False))
        identity = {"config": base.MODEL.GN.CONFIG, "recipe": config_digest(base), "data": data}
        path = self.folder / "study.json"
        known = read_record(path) if path.is_file() else {}
        different = [key for key in ("config", "recipe") if known and known.get(key) != identity[key]]
        then = read_identities(known.get("data"))
        different += [name for name in data if not same_data(then.get(name), data[name])]
        if different:
            raise GNDetError(
                f"{self.folder} holds a norm study with another config or other data ({', '.join(different)}); set another "
                "OUTPUT_DIR."
            )
        save_json(path, identity)

    def result_file(self, variant: Variant) -> Path:
        """Return the path of the variant's record, which exists once the variant is finished."""
        return self.folder / "records" / f"{variant.name}.json"

    def run(self, jobs: int = 1, log: Callable[[str], None] = print) -> list[str]:
        """Train the variants that are not finished yet, and log the progress.

        A variant that diverges is a result and not a failure.

        Args:
            jobs: number of trainings that run at the same time.
            log: called with each line of progress.

        Returns:
            One sentence for each variant that failed.

        Raises:
            GNDetError: ``jobs`` is below 1.
            Stopped: this process has received a signal. The trainings have saved checkpoints and ended.
        """
        if jobs < 1:
            raise GNDetError(f"--jobs is {jobs}; it is the number of simultaneous trainings and must be 1 or more.")
        todo = deque(v for v in self.variants if not self.result_file(v).is_file())
        done, total, failures = len(self.variants) - len(todo), len(self.variants), []
        if done:
            log(f"{done} of {total} trainings are already done.")
        start = time.monotonic()
        with owned(self.folder), _stopping_on_signals():
            for trained, (variant, seconds, failure) in enumerate(self._train_all(todo, jobs), start=1):
                seconds_left = (total - done - trained) * (time.monotonic() - start) / trained
                if failure:
                    failures.append(f"{variant}: {failure}")
                outcome = failure or _format_outcome(read_record(self.result_file(variant)))
                took, left = tqdm.format_interval(seconds), tqdm.format_interval(seconds_left)
                log(f"[{done + trained}/{total}] {variant}: {outcome} ({took}; about {left} left)")
        return failures

    def report(self) -> list[Path]:
        """Write the tables (study.md) and the picture (study.png) of all finished variants.

        Returns:
            The paths of both files; an empty list if no variant is finished.

        Raises:
            GNDetError: the variants were trained or evaluated on different data.
        """
        records = [read_record(path) for path in sorted((self.folder / "records").glob("*.json"))]
        if not records:
            return []
        check_test_data(records)
        trained = {train_data_of(record) for record in records} - {()}
        if len(trained) > 1:
            raise GNDetError(
                f"The trainings in {self.folder} used {len(trained)} different sets of training data, so their AP cannot be "
                "compared; set another OUTPUT_DIR."
            )
        table, picture = self.folder / "study.md", self.folder / "study.png"
        save_text(table, study_tables(records) + "\n")
        draw_study(records, picture)
        return [table, picture]

    def _train_all(self, todo: deque[Variant], jobs: int) -> Iterator[tuple[Variant, float, str]]:
        """Train the variants in ``jobs`` processes at a time, one per slot.

        Yields:
            When a variant ends: the variant, its seconds, and a sentence about its failure ("" if none).
        """
        running: dict = {}  # process -> (slot, variant, start time)
        try:
            while todo or running:
                free = [slot for slot in range(jobs) if slot not in {slot for slot, *_ in running.values()}]
                while todo and free:
                    variant, slot = todo.popleft(), free.pop(0)
                    running[self._start(variant, slot, jobs)] = slot, variant, time.monotonic()
                ready = wait([process.sentinel for process in running])
                for process in [p for p in running if p.sentinel in ready]:
                    _, variant, start = running.pop(process)
                    process.join()
                    yield variant, time.monotonic() - start, self._save_result(variant, process.exitcode)
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.join()

    def _start(self, variant: Variant, slot: int, jobs: int):
        args = self._arguments(variant)
        folder = self.folder / variant.name
        folder.mkdir(parents=True, exist_ok=True)
        process = multiprocessing.get_context("spawn").Process(
            target=_train, args=(args, str(folder / "output.txt"), slot, jobs)
        )
        process.start()
        return process

    def _save_result(self, variant: Variant, exit_code: int) -> str:
        """Write the record of a variant whose process ended, or return a sentence about its failure."""
        folder = self.folder / variant.name
        output = (folder / "output.txt").read_text(errors="replace")
        errors = re.findall(r"^error: (.*)", output, re.MULTILINE)
        if exit_code and errors and (stop := DIVERGED.match(errors[-1])):
            cfg = load_config(str(folder / "config.yaml"))
            record = make_record(cfg, cfg.DATASETS.TEST[0], {}) | {"diverged": int(stop[1])}
        else:
            records = sorted((folder / "records").glob("*.json"))  # sorted by iteration
            if exit_code or not records:
                ended = f"the process ended with exit code {exit_code}; see {folder / 'output.txt'}"
                return errors[-1] if errors else ended
            record = read_record(records[-1])
        save_json(self.result_file(variant), record | {"variant": dataclasses.asdict(variant)})
        return ""


@contextlib.contextmanager
def _stopping_on_signals() -> Iterator[None]:
    """Raise ``Stopped`` in a block after a signal that would otherwise end this process and not its trainings."""

    def stop(number: int, _: object) -> None:
        raise Stopped(number)

    if threading.current_thread() is threading.main_thread():
        with handling(stop, set(SIGNALS) - {signal.SIGINT}):
            yield
    else:
        yield


def _check_weights(cfg: CfgNode, variants: list[Variant], weights: dict[str, str]) -> None:
    """Raise GNDetError if a norm would start from weights that were trained with another norm."""
    missing = {v.norm for v in variants} - weights.keys() - {cfg.MODEL.RESNETS.NORM}
    if cfg.MODEL.WEIGHTS and missing:
        raise GNDetError(
            f"MODEL.WEIGHTS is {cfg.MODEL.WEIGHTS}, which was trained with {cfg.MODEL.RESNETS.NORM or 'no norm'}; pass "
            f"weights for the other norms too (--weights {min(missing)}=FILE), or train all norms from scratch "
            "(MODEL.WEIGHTS '')."
        )


def _train(args: argparse.Namespace, output: str, slot: int, jobs: int) -> None:
    """Run one training in the current process, with its stdout and stderr appended to ``output``."""
    with open(output, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if gpus := torch.cuda.device_count():
        if args.num_gpus == 1:
            os.environ["CUDA_VISIBLE_DEVICES"] = str(slot % gpus)
    elif jobs > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    run_tool(lambda: launch(main, args))


def _format_outcome(record: dict) -> str:
    if "diverged" in record:
        return "diverged" + (f" at iteration {record['diverged']}" if record["diverged"] else "")
    return ", ".join(f"{kind} AP {record[kind]['AP']:.1f}" for kind in ("box", "mask") if record[kind])
