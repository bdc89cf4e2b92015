"""The OUTPUT_DIR of a run: what earlier runs left in it, and the files that describe a run."""

import functools
import glob
import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.utils import comm

from ..checkpoint.newest import has_checkpoints
from ..data.coco import register_again
from ..data.identity import dataset_identity, describe_identity, read_identity, same_data
from ..errors import GNDetError
from ..evaluation.records import Weights, config_digest, evaluation_key
from ..evaluation.run_folder import read_datasets, remember_datasets
from ..files import replacing, save_text

logger = logging.getLogger(__name__)

#: Prefix of the names of datasets from ``--train-json`` and ``--val-json``; no dataset of detectron2 has it.
OWN = "own_"
#: Folder of the evaluations of a training, below its OUTPUT_DIR.
EVALUATIONS = "evaluations"
_METRICS = "metrics.json"
# The files of a run that another run in the same folder would mix with its own, other than checkpoints.
_RUN_FILES = (_METRICS, "events.out.tfevents.*", "config.yaml", "records", "inference", "pictures", "report*.html")


def is_trained(folder: str | Path) -> bool:
    """Return whether a training has saved weights in a folder."""
    return has_checkpoints(folder) or any(Path(folder).glob("model_*.pth"))


def is_training(folder: str | Path) -> bool:
    """Return whether a folder is the OUTPUT_DIR of a training, finished or not."""
    metrics = Path(folder, _METRICS)
    return is_trained(folder) or (metrics.is_file() and metrics.stat().st_size > 0)


def leftovers_in(folder: str | Path) -> list[Path]:
    """Return the files and folders of an earlier run in a folder, without checkpoints and logs."""
    root = glob.escape(str(folder))
    found = [Path(name) for pattern in _RUN_FILES for name in sorted(glob.glob(os.path.join(root, pattern)))]
    return [path for path in found if path.name != _METRICS or path.stat().st_size]


def set_aside(leftovers: Sequence[Path], folder: str | Path) -> None:
    """Move the files of an earlier run to a new folder ``FOLDER/earlier-N``, and log one line about it."""
    if not leftovers:
        return
    names = (Path(folder) / f"earlier-{number}" for number in itertools.count(1))
    target = next(name for name in names if not name.exists())
    target.mkdir()
    for path in leftovers:
        if path.name == _METRICS:  # the new run has opened it for appending
            shutil.copy2(path, target / path.name)
            os.truncate(path, 0)
        else:
            path.rename(target / path.name)
    logger.warning(f"{folder} holds files of an earlier run without a checkpoint: they were moved to {target}.")


def evaluation_folder(cfg: CfgNode, weights: Weights | None) -> str:
    """Create and return the folder of an evaluation of a training, the same in all processes.

    The name is ``WEIGHTS-DATASET-KEY`` in ``OUTPUT_DIR/evaluations``. The key depends on the content of
    weights, config and data, so that only the same evaluation replaces an earlier one.

    Args:
        weights: the weights that are evaluated; only used in the main process.
    """
    folder = ""
    if weights:
        datasets = cfg.DATASETS.TEST
        digests = [(dataset_identity(name) or {"digest": name})["digest"] for name in datasets]
        key = evaluation_key(weights.sha256, config_digest(cfg), {"digest": " ".join(digests)})
        more = f"-and-{len(datasets) - 1}-more" if len(datasets) > 1 else ""
        name = f"{Path(weights.name).stem}-{datasets[0]}{more}-{key}".replace(os.sep, "_")
        folder = os.path.join(cfg.OUTPUT_DIR, EVALUATIONS, name)
        os.makedirs(folder, exist_ok=True)
    return str(comm.all_gather(folder)[0])


@functools.cache
def _staging() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="gn_det_")


def staged_file(name: str) -> Path:
    """Return the path of the cleaned annotations of a dataset until :func:`write_description` moves them.

    It is in a temporary folder of this process, so that a refused command changes no file of a run.
    """
    return Path(_staging().name) / f"{name}.json"


def remove_staged_files() -> None:
    """Delete the folder of :func:`staged_file`, if there is one."""
    if _staging.cache_info().currsize:
        _staging().cleanup()
        _staging.cache_clear()


def write_description(cfg: CfgNode, datasets: Sequence[str]) -> None:
    """Write ``config.yaml`` and ``data`` of a run to ``OUTPUT_DIR``. Must be called in each process.

    ``data`` gets the cleaned annotations of your own datasets, which are read from there from now on, and
    ``datasets.json``.

    Args:
        datasets: names of the registered datasets that the run reads.
    """
    folder = Path(cfg.OUTPUT_DIR)
    own = {name: folder / "data" / f"{name}.json" for name in datasets if name.startswith(OWN)}
    if comm.is_main_process():
        _warn_about_test_data(folder, cfg.DATASETS.TEST)
        for name, file in own.items():
            _copy(Path(MetadataCatalog.get(name).json_file), file)
        save_text(folder / "config.yaml", cfg.dump())
    comm.synchronize()
    for name, file in own.items():
        _read_from(name, file)
    remove_staged_files()
    if comm.is_main_process():
        remember_datasets(folder, tuple(datasets))


def _warn_about_test_data(folder: Path, names: Sequence[str]) -> None:
    """Warn about test data that differ from those which an earlier run in the folder had under the same name."""
    try:
        entries = read_datasets(folder)
    except GNDetError:
        return  # a damaged file, which is replaced
    for name in names:
        before, now = read_identity(entries.get(name, {}).get("data")), dataset_identity(name)
        if not same_data(before, now):
            logger.warning(
                f"{describe_identity(name, now)} replaces {describe_identity(name, before)}, on which the earlier "
                f"evaluations in {folder} were made: their AP cannot be compared."
            )


def _copy(source: Path, target: Path) -> None:
    if target.exists() and source.samefile(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as part:
        shutil.copyfile(source, part)


def _read_from(name: str, file: Path) -> None:
    """Register a dataset with another path of its annotations."""
    facts = MetadataCatalog.get(name).as_dict()
    staged = _staging.cache_info().currsize and Path(facts["json_file"]) == staged_file(name)
    if not staged:  # of an earlier run, which may have changed since
        ids = facts["thing_dataset_id_to_contiguous_id"]
        register_again(name, str(file), facts["image_root"], facts["thing_classes"], sorted(ids, key=ids.get))
        return
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.remove(name)
    DatasetCatalog.register(name, functools.partial(load_coco_json, str(file), facts["image_root"], name))
    MetadataCatalog.get(name).set(**{**facts, "json_file": str(file)})
