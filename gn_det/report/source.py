"""What a report is made of: everything that a run has left in its OUTPUT_DIR, and what is missing there."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.coco import read_annotations
from ..errors import GNDetError
from ..evaluation.evaluator import read_detections
from ..evaluation.run_folder import read_config, read_metrics, read_records, register_datasets

_COUNTED = 100e6  # bytes of a JSON up to which its images and objects are counted only to be told


@dataclass
class Source:
    """One run, and one data set that it was evaluated on, if any."""

    folder: Path
    cfg: CfgNode
    metrics: list[dict]  # as read_metrics
    dataset: str | None = None
    record: dict | None = None  # the latest on that data set
    truth: dict | None = None  # as read_annotations
    detections: list[dict] | None = None
    detections_file: Path | None = None
    image_root: Path | None = None
    others: list[str] = field(default_factory=list)  # further data sets that there is an evaluation on
    missing: list[str] = field(default_factory=list)  # sentences


def read_source(folder: str | Path, dataset: str | None = None) -> Source:
    """Read a run's folder.

    Args:
        dataset: the one to report on; by default the first of ``DATASETS.TEST`` that there is an evaluation on.

    Raises:
        GNDetError: no run there, no evaluation on that data set, or a file that cannot be read.
    """
    folder = Path(folder)
    source = Source(folder, read_config(folder), read_metrics(folder))
    register_datasets(folder)
    records = {record["dataset"]: record for record in read_records(folder)}
    detections = {path.parent.name: path for path in (folder / "inference").glob("*/coco_instances_results.json")}
    names = sorted(records.keys() | detections.keys())
    if dataset is not None and dataset not in names:
        there = f"there is one on {', '.join(names)}" if names else "there is none"
        raise GNDetError(f"{folder} holds no evaluation on {dataset}: {there}.")
    first = [name for name in source.cfg.DATASETS.TEST if name in names]
    source.dataset = dataset or next(iter(first + names), None)
    if source.dataset is None:
        source.missing.append("This run was not evaluated, so there is nothing here on what the model finds.")
        return source
    source.others = [name for name in names if name != source.dataset]
    source.record = records.get(source.dataset)
    source.detections_file = detections.get(source.dataset)
    _read_data(source)
    return source


def _read_data(source: Source) -> None:
    if source.detections_file is None:
        source.missing.append(
            f"The detections on {source.dataset} are gone, so there is nothing here beyond its record."
        )
        return
    metadata: Any = MetadataCatalog.get(source.dataset) if source.dataset in DatasetCatalog else {}
    json_file = metadata.get("json_file")
    if not json_file or not Path(json_file).is_file():
        gone = f"{json_file} is gone" if json_file else "the run did not note where they lie"
        source.missing.append(
            f"The annotations of {source.dataset} are not there ({gone}), so there is nothing here beyond its record."
        )
        return
    source.truth = read_annotations(json_file)
    source.detections = read_detections(source.detections_file)
    root = metadata.get("image_root")
    if root and Path(root).is_dir():
        source.image_root = Path(root)
    else:
        source.missing.append(f"The images of {source.dataset} are not there, so no pictures are shown.")


def count(name: str, truth: dict | None = None) -> str:
    """``shapes_val: 60 images, 291 objects``, as far as it is known.

    Args:
        truth: the annotations, where they are read already.
    """
    path = MetadataCatalog.get(name).get("json_file") if name in DatasetCatalog else None
    if truth is None and path and Path(path).is_file() and Path(path).stat().st_size <= _COUNTED:
        try:
            truth = read_annotations(path)
        except GNDetError:
            return f"{name}, whose annotations cannot be read any more"
    if truth is None:
        return name
    objects = sum(not row.get("iscrowd") for row in truth["annotations"])
    return f"{name}: {len(truth['images']):,} images, {objects:,} objects"
