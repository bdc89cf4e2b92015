"""Write and read result records, the JSON files that each evaluation writes.

A record has AP and what is needed to reproduce it: config, weights, seed, versions, hardware,
commit and date.
"""

import datetime
import hashlib
import json
import math
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import detectron2
import torch
import torchvision
import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm
from tabulate import tabulate

from ..config.defaults import KEYS
from ..config.files import load_config, shipped_configs
from ..data.identity import dataset_identities, dataset_identity, read_identities, read_identity, same_data
from ..errors import GNDetError
from ..files import digest, read_json, save_json
from ..metrics import METRICS, metric_in_record
from ..zoo.index import published

# Config keys that are not part of the recipe: their values differ between machines and runs.
_NOT_RECIPE = {
    *("OUTPUT_DIR", "SEED", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS", "VIS_PERIOD", "TEST.EVAL_PERIOD"),
    *(key.name for key in KEYS if key.recipe == "never"),
}
# Config keys that are part of the recipe only if they are changed, with their defaults.
_IF_CHANGED = {key.name: key.default for key in KEYS if key.recipe == "if changed"}


@dataclass(frozen=True)
class Weights:
    """The weights that an evaluation without training measures.

    Attributes:
        name: path, URL or name of the file.
        sha256: digest of the file.
        iteration: number of iterations that the weights were trained for; None if unknown.
        train_data: identity of each training dataset, see :func:`gn_det.data.identity.dataset_identity`.
    """

    name: str
    sha256: str
    iteration: int | None
    train_data: dict[str, dict[str, Any] | None]


def weights_of(name: str, file: str | Path, checkpoint: dict[str, Any]) -> Weights:
    """Return the identity of a weights file.

    Args:
        name: of the weights, as the user wrote it.
        file: the local file.
        checkpoint: its content other than the tensors.
    """
    last = checkpoint.get("iteration")
    iteration = last + 1 if isinstance(last, int) else None
    return Weights(name, digest(file), iteration, read_identities(checkpoint.get("datasets")))


def make_record(
    cfg: CfgNode,
    dataset_name: str,
    results: dict,
    seconds_per_image: float | None = None,
    weights: Weights | None = None,
) -> dict:
    """Make the record of an evaluation.

    Args:
        results: the evaluator's metrics of each task, {"bbox": {...}, "segm": {...}}.
        seconds_per_image: median time of the model's forward pass; on a CPU, without pasting the masks.
        weights: the weights that were evaluated; None during training.

    Returns:
        the record, with the keys in docs/records.md except "iteration".
    """
    name = cfg.MODEL.GN.CONFIG
    return {
        "config": name,
        "config_sha256": config_digest(cfg),
        "changed": changed_keys(cfg),
        "weights": weights.name if weights else cfg.MODEL.WEIGHTS,
        "weights_sha256": weights.sha256 if weights else None,
        "dataset": dataset_name,
        "data": dataset_identity(dataset_name),
        "train_data": weights.train_data if weights else dataset_identities(cfg.DATASETS.TRAIN),
        "box": _finite(results.get("bbox")),
        "mask": _finite(results.get("segm")),
        "published": published(name),
        "seconds_per_image": seconds_per_image,
        "images_per_batch": cfg.SOLVER.IMS_PER_BATCH,
        "ignore_padding": cfg.MODEL.GN.IGNORE_PADDING,
        "processes": comm.get_world_size(),
        "seed": cfg.SEED,
        **environment(cfg.MODEL.DEVICE),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _finite(metrics: dict | None) -> dict | None:
    """Round the metrics, and replace NaN by None, because JSON has no NaN."""
    return metrics and {k: round(v, 4) if math.isfinite(v) else None for k, v in metrics.items()}


def config_digest(cfg: CfgNode) -> str:
    """Return a sha256 of the config that is equal for runs of the same recipe.

    The recipe is the config without the keys that describe the machine or the run. Optional keys of
    gn_det are left out if they have their default values, so that a new key does not change the
    digest of existing recipes.
    """

    flat = {k: v for k, v in flatten(yaml.safe_load(cfg.dump())).items() if k not in _NOT_RECIPE}
    flat = {k: v for k, v in flat.items() if k not in _IF_CHANGED or v != _tuple_to_list(_IF_CHANGED[k])}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()


def _tuple_to_list(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value  # YAML has no tuples


def changed_keys(cfg: CfgNode) -> dict | None:
    """Return the keys of the recipe whose values differ from the shipped config of the same name.

    Returns:
        {dotted key: value in ``cfg``}, or None if no shipped config has that name.
    """
    path = shipped_configs().get(cfg.MODEL.GN.CONFIG)
    if not path:
        return None
    shipped, given = (flatten(yaml.safe_load(c.dump())) for c in (load_config(str(path)), cfg))
    return {k: v for k, v in given.items() if v != shipped.get(k) and k not in _NOT_RECIPE}


def flatten(node: dict, prefix: str = "") -> dict:
    """Return the values of a config, or of a part of it, by dotted key."""
    flat: dict = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def environment(device: str) -> dict:
    """Return the versions, the hardware and the git commit of gn_det.

    Returns:
        a dict with the keys

        - "versions": of python, torch, torchvision and detectron2.
        - "hardware": "device", number of "cores", name of the "cpu" and, on a GPU, of the "gpu".
        - "commit": the hash, with "+changes" if tracked files were changed; None outside a git
          checkout.
    """
    versions = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}
    copy = " (labgym's copy)" if "LabGym" in Path(detectron2.__file__).parts else ""
    versions["detectron2"] = detectron2.__version__ + copy
    hardware = {"device": device, "cores": os.cpu_count(), "cpu": _cpu_name()}
    if device.startswith("cuda"):
        hardware["gpu"] = torch.cuda.get_device_name()
    return {"versions": versions, "hardware": hardware, "commit": _commit()}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def evaluation_key(weights_sha256: str, config_sha256: str, data: object) -> str:
    """Return a name for an evaluation without training, ``WEIGHTS-SETTINGS``, of 8 hex digits each.

    The digits depend on the weights, and on config and data.
    """
    settings = f"{config_sha256} {(read_identity(data) or {}).get('digest')}"
    return f"{weights_sha256[:8]}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"


def write_record(folder: str, record: dict) -> Path:
    """Write a record to ``FOLDER/records``, and return the path.

    The name is ``CONFIG-DATASET-ITERATION.json`` during training, and otherwise
    ``CONFIG-DATASET-WEIGHTS-SETTINGS.json`` (see :func:`evaluation_key`).
    """
    parts = [record["config"] or "config", record["dataset"]]
    if record.get("weights_sha256"):
        parts.append(evaluation_key(record["weights_sha256"], record["config_sha256"], record["data"]))
    elif record.get("iteration") is not None:
        parts.append(f"{record['iteration']:07d}")
    path = Path(folder) / "records" / ("-".join(parts).replace(os.sep, "_") + ".json")
    return save_json(path, record)


def read_record(path: str | Path) -> dict:
    """Read a record from a file.

    Raises:
        GNDetError: the file cannot be read, or is not a JSON object.
    """
    record = read_json(path, f"The record {path}")
    if not isinstance(record, dict):
        raise GNDetError(f"{path} is not a result record, because its content is not a JSON object.")
    return record


def records_in(folder: str | Path) -> list[dict]:
    """Read all records in a folder and its subfolders.

    Raises:
        GNDetError: see :func:`read_record`.
    """
    return [read_record(path) for path in sorted(Path(folder).rglob("*.json"))]


def past_values(folder: str, dataset_name: str, metric: str, until: int) -> dict[int, float]:
    """Return the values of a metric in the evaluations during a training, in the order of the iterations.

    Evaluations on other data that had the same name are left out.

    Args:
        folder: the run's OUTPUT_DIR.
        metric: for example ``bbox/AP``.
        until: the last iteration to include.

    Returns:
        {number of iterations: value}; the value is NaN if the record does not have the metric.
    """
    values, data = {}, dataset_identity(dataset_name)
    for path in sorted(Path(folder, "records").glob("*.json"), key=os.path.getmtime):
        record = read_record(path)
        in_training = record.get("dataset") == dataset_name and not record.get("weights_sha256")
        in_training = in_training and same_data(read_identity(record.get("data")), data)
        if in_training and 0 < (record.get("iteration") or 0) <= until:
            values[record["iteration"]] = metric_in_record(record, metric)
    return dict(sorted(values.items()))


def format_table(record: dict) -> str:
    """Format box and mask AP as a table.

    On COCO val2017, the published AP of the config follows each row.
    """

    changed = f" ({len(record['changed'])} keys changed)" if record["changed"] else ""
    paper = record["published"] if record["dataset"].startswith("coco_2017_val") else None
    rows, names = [], [*METRICS, *(key for key in record["box"] or () if key.startswith(("AP@", "AR@")))]
    for kind in ("box", "mask"):
        if record[kind]:
            rows.append([f"{kind} AP", *(record[kind].get(key) for key in names)])
            if paper and paper[kind]:
                rows.append([f"  {paper['source']}", *(paper[kind].get(key) for key in names)])
    headers = [record["dataset"], *names]
    table = tabulate(rows, headers, tablefmt="github", floatfmt=".1f", missingval="-")
    return f"{record['config'] or 'this model'}{changed}:\n\n{table}"
