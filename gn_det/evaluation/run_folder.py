"""An ``OUTPUT_DIR``, read by another process than the one that wrote it."""

import json
import os
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..config.files import load_config
from ..data.coco import register_again
from ..errors import GNDetError
from ..files import save_json
from .records import read_record


def remember_datasets(folder: str | Path, names: tuple[str, ...]) -> None:
    """Write to ``FOLDER/data/datasets.json`` where these registered data sets lie and what their classes are.

    Paths in ``folder`` are written relative to it, so that it can be moved. What an earlier run there wrote of other
    data sets is kept. Data sets that are not in COCO's format are left out.
    """
    path = _datasets_file(folder)
    try:
        entries = _read_entries(folder)
    except GNDetError:
        entries = {}  # a broken file is replaced
    for name in names:
        metadata = MetadataCatalog.get(name)
        if metadata.get("json_file") and metadata.get("thing_dataset_id_to_contiguous_id"):
            indices = metadata.thing_dataset_id_to_contiguous_id
            entries[name] = {
                "json": _portable(metadata.json_file, path.parent.parent),
                "images": _portable(metadata.image_root, path.parent.parent) if metadata.get("image_root") else "",
                "classes": list(metadata.thing_classes),
                "ids": sorted(indices, key=indices.get),
            }
    save_json(path, entries)


def _datasets_file(folder: str | Path) -> Path:
    return Path(folder) / "data" / "datasets.json"


def _portable(path: str, root: Path) -> str:
    there, root = Path(os.path.expanduser(path)).resolve(), root.resolve()
    return str(there.relative_to(root) if there.is_relative_to(root) else there)


def read_datasets(folder: str | Path) -> dict[str, dict]:
    """What :func:`remember_datasets` wrote, or {} where nothing is.

    Returns:
        for each name {"json": file, "images": folder or "", "classes": names, "ids": their category ids}, paths absolute.

    Raises:
        GNDetError: the file is not what :func:`remember_datasets` writes.
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
    entries = _read_json(path)
    if not isinstance(entries, dict) or not all(map(_is_entry, entries.values())):
        raise GNDetError(f"{path} does not say where the run's data sets lie: remove it, and train or evaluate again.")
    return entries


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and (
        all(isinstance(entry.get(key), str) for key in ("json", "images"))
        and all(isinstance(entry.get(key), list) for key in ("classes", "ids"))
        and all(isinstance(name, str) for name in entry["classes"])
        and all(isinstance(number, int) for number in entry["ids"])
    )


def _read_json(path: Path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise GNDetError(f"{path} cannot be read as JSON: {error}.") from None


def register_datasets(folder: str | Path) -> list[str]:
    """Register the data sets of a finished run again, from what :func:`remember_datasets` left in its ``OUTPUT_DIR``.

    A name that is registered already with that very file, or whose file is gone, is left as it is.

    Returns:
        the names that are registered now. Their files are read when they are asked for, and may be gone.

    Raises:
        GNDetError: as :func:`read_datasets`.
    """
    entries = read_datasets(folder)
    for name, entry in entries.items():
        known = MetadataCatalog.get(name).get("json_file") if name in DatasetCatalog else None
        here = known and Path(os.path.expanduser(known)).resolve() == Path(entry["json"]).resolve()
        if known is None or (not here and os.path.exists(entry["json"])):
            register_again(name, entry["json"], entry["images"], entry["classes"], entry["ids"])
    return list(entries)


def read_config(folder: str | Path) -> CfgNode:
    """The config of a run, from its ``OUTPUT_DIR``.

    Raises:
        GNDetError: the folder is not there, holds no run, or its config cannot be read.
    """
    if not Path(folder).is_dir():
        raise GNDetError(f"The folder {folder} is not there: give the OUTPUT_DIR of a run.")
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise GNDetError(f"{folder} is not the OUTPUT_DIR of a run: it has no config.yaml.")
    return load_config(str(path))


def read_records(folder: str | Path) -> list[dict]:
    """The result records of a run, the latest last.

    Raises:
        GNDetError: a record cannot be read, or is none.
    """
    records = []
    for path in sorted((Path(folder) / "records").glob("*.json")):
        record = read_record(path)
        needed = {"config", "dataset", "box", "mask", "date"}
        if not needed <= record.keys():
            raise GNDetError(f"{path} is no result record: it lacks some of {', '.join(sorted(needed))}.")
        records.append(record)
    return sorted(records, key=lambda record: str(record["date"]))


def read_metrics(folder: str | Path) -> list[dict]:
    """The lines of ``metrics.json``, one an iteration, in their order; [] where there are none.

    Of an iteration that is there twice, as a resumed run leaves it, each value is the later one. A line that a killed
    run has left unfinished is passed over.
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
            rows[row["iteration"]] = rows.get(row["iteration"], {}) | row
    return [rows[iteration] for iteration in sorted(rows)]
