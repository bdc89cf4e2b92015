"""Read the OUTPUT_DIR of a run: its config, datasets, result records and metrics."""

import json
import os
from collections.abc import Collection
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..config.files import load_config
from ..data.coco import register_again
from ..data.identity import dataset_identity
from ..errors import GNDetError
from ..files import read_json, save_json
from .records import read_record


def remember_datasets(folder: str | Path, names: tuple[str, ...]) -> None:
    """Write the paths, classes and identities of registered datasets to ``FOLDER/data/datasets.json``.

    Paths inside ``folder`` are written relative to it, so that the folder can be moved. Entries of
    other datasets that an earlier run wrote are kept. Datasets that are not in COCO's format are
    left out.

    Args:
        folder: the OUTPUT_DIR of the run.
        names: registered names of the datasets.
    """
    path = _datasets_file(folder)
    try:
        entries = _read_entries(folder)
    except GNDetError:
        entries = {}  # replace a damaged file
    for name in names:
        metadata = MetadataCatalog.get(name)
        if metadata.get("json_file") and metadata.get("thing_dataset_id_to_contiguous_id"):
            indices = metadata.thing_dataset_id_to_contiguous_id
            entries[name] = {
                "json": _portable(metadata.json_file, path.parent.parent),
                "images": _portable(metadata.image_root, path.parent.parent) if metadata.get("image_root") else "",
                "classes": list(metadata.thing_classes),
                "ids": sorted(indices, key=indices.get),
                "data": dataset_identity(name),
            }
    save_json(path, entries)


def _datasets_file(folder: str | Path) -> Path:
    return Path(folder) / "data" / "datasets.json"


def _portable(path: str, root: Path) -> str:
    """Return the path relative to ``root`` if it is inside, and absolute otherwise."""
    absolute, root = Path(os.path.expanduser(path)).resolve(), root.resolve()
    return str(absolute.relative_to(root) if absolute.is_relative_to(root) else absolute)


def read_datasets(folder: str | Path) -> dict[str, dict]:
    """Read the datasets of a run, as :func:`remember_datasets` wrote them.

    Returns:
        a dict for each dataset name; empty if the run has no such file. Each has the keys

        - "json": absolute path of the annotations.
        - "images": absolute path of the image folder, or "".
        - "classes": names of the classes.
        - "ids": category ids of the classes.
        - "data": see :func:`gn_det.data.identity.dataset_identity`; absent if an older version wrote the file.

    Raises:
        GNDetError: the file does not have this format.
    """
    root = Path(folder).resolve()
    return {
        name: entry | {key: str(root / entry[key]) for key in ("json", "images") if entry[key]}
        for name, entry in _read_entries(folder).items()
    }


def _read_entries(folder: str | Path) -> dict[str, dict]:
    path = _datasets_file(folder)
    if not path.is_file():
        return {}
    entries = read_json(path, str(path))
    if not isinstance(entries, dict) or not all(map(_is_entry, entries.values())):
        raise GNDetError(f"{path} is not a list of the run's datasets; delete it, and train or evaluate again.")
    return entries


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and (
        all(isinstance(entry.get(key), str) for key in ("json", "images"))
        and all(isinstance(entry.get(key), list) for key in ("classes", "ids"))
        and all(isinstance(name, str) for name in entry["classes"])
        and all(isinstance(number, int) for number in entry["ids"])
    )


def register_datasets(folder: str | Path, names: Collection[str] | None = None) -> list[str]:
    """Register the datasets of a finished run with detectron2 again.

    A registered name is kept if it has the same annotation file, or if the run's annotation file no
    longer exists.

    Args:
        folder: the OUTPUT_DIR of the run, in which :func:`remember_datasets` wrote their paths.
        names: of the datasets to register; by default all of the run.

    Returns:
        the names of these datasets of the run. The annotation files are read on first use, and may
        no longer exist.

    Raises:
        GNDetError: see :func:`read_datasets`.
    """
    if names is not None and not names:
        return []
    entries = {name: entry for name, entry in read_datasets(folder).items() if names is None or name in names}
    for name, entry in entries.items():
        known = MetadataCatalog.get(name).get("json_file") if name in DatasetCatalog else None
        same = known and Path(os.path.expanduser(known)).resolve() == Path(entry["json"]).resolve()
        if known is None or (not same and os.path.exists(entry["json"])):
            register_again(name, entry["json"], entry["images"], entry["classes"], entry["ids"])
    return list(entries)


def read_config(folder: str | Path) -> CfgNode:
    """Read the config of a run from its OUTPUT_DIR.

    Raises:
        GNDetError: the folder does not exist, is not the OUTPUT_DIR of a run, or the config cannot
            be read.
    """
    if not Path(folder).is_dir():
        raise GNDetError(f"The folder {folder} does not exist; pass the OUTPUT_DIR of a run.")
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise GNDetError(
            f"{folder} is not the OUTPUT_DIR of a run, because it has no config.yaml; pass another folder."
        )

    return load_config(str(path))


def read_records(folder: str | Path) -> list[dict]:
    """Read the result records of a run, in the order of their dates.

    Args:
        folder: the OUTPUT_DIR of the run.

    Raises:
        GNDetError: a file cannot be read, or is not a result record.
    """
    records = []
    for path in sorted((Path(folder) / "records").glob("*.json")):
        record = read_record(path)
        missing = {"config", "dataset", "box", "mask", "date"} - record.keys()
        if missing:
            raise GNDetError(
                f"{path} is not a result record: it has no {', '.join(sorted(missing))}; remove it from the folder."
            )
        records.append(record)
    return sorted(records, key=lambda record: str(record["date"]))


def read_metrics(folder: str | Path) -> list[dict]:
    """Read the ``metrics.json`` of a run.

    Where a resumed run repeats iterations, its rows replace all rows from the first repeated iteration on. A
    line that is not complete, because the run was killed, is skipped.

    Args:
        folder: the OUTPUT_DIR of the run.

    Returns:
        a dict of metrics per iteration, in the order of the iterations; [] if the run has no
        ``metrics.json``.
    """
    path = Path(folder) / "metrics.json"
    if not path.is_file():
        return []
    rows: dict[int, dict] = {}
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("iteration"), int):
            while rows and next(reversed(rows)) >= row["iteration"]:
                rows.popitem()  # of the run before it was resumed
            rows[row["iteration"]] = row
    return list(rows.values())
