"""Read the files of a run that its report shows, and note which of them are missing."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.coco import read_annotations
from ..errors import GNDetError
from ..evaluation.detections import read_detections
from ..evaluation.run_folder import read_config, read_metrics, read_records, register_datasets

_MAX_BYTES = 100e6  # a larger annotation file is not read only to count its images and objects


@dataclass
class Source:
    """A run and its evaluation on one dataset. An attribute is None if its file is missing.

    Attributes:
        folder: the OUTPUT_DIR.
        cfg: the config.
        metrics: of the training, see :func:`gn_det.evaluation.run_folder.read_metrics`.
        dataset: name of the dataset; None if the run was not evaluated.
        record: the latest result record on the dataset.
        truth: the annotations, see :func:`gn_det.data.coco.read_annotations`.
        detections: in COCO's result format.
        detections_file: from which they were read.
        image_root: folder of the images.
        others: names of the other datasets on which the run was evaluated.
        missing: sentences that tell what the report does not show, and why.
    """

    folder: Path
    cfg: CfgNode
    metrics: list[dict]
    dataset: str | None = None
    record: dict | None = None
    truth: dict | None = None
    detections: list[dict] | None = None
    detections_file: Path | None = None
    image_root: Path | None = None
    others: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def read_source(folder: str | Path, dataset: str | None = None) -> Source:
    """Read the files of a run.

    Args:
        folder: the OUTPUT_DIR of the run.
        dataset: the dataset to report on; by default the first of ``DATASETS.TEST`` on which the
            run was evaluated.

    Raises:
        GNDetError: ``folder`` is not the OUTPUT_DIR of a run, the run was not evaluated on
            ``dataset``, or a file cannot be read.
    """
    folder = Path(folder)
    source = Source(folder, read_config(folder), read_metrics(folder))
    register_datasets(folder)
    records = {record["dataset"]: record for record in read_records(folder)}
    detections = {path.parent.name: path for path in (folder / "inference").glob("*/coco_instances_results.json")}
    names = sorted(records.keys() | detections.keys())
    if dataset is not None and dataset not in names:
        hint = f"use one of {', '.join(names)}" if names else "evaluate it first with --eval-only and --resume"
        raise GNDetError(f"The run in {folder} was not evaluated on {dataset}; {hint}.")
    first = [name for name in source.cfg.DATASETS.TEST if name in names]
    source.dataset = dataset or next(iter(first + names), None)
    if source.dataset is None:
        source.missing.append("This run was not evaluated, so this report has no results.")
        return source
    source.others = [name for name in names if name != source.dataset]
    source.record = records.get(source.dataset)
    source.detections_file = detections.get(source.dataset)
    _read_data(source)
    return source


def _read_data(source: Source) -> None:
    if source.detections_file is None:
        source.missing.append(
            f"The detections on {source.dataset} were not found, so this report only shows the record of the evaluation."
        )
        return
    metadata: Any = MetadataCatalog.get(source.dataset) if source.dataset in DatasetCatalog else {}
    json_file = metadata.get("json_file")
    if not json_file or not Path(json_file).is_file():
        reason = f"{json_file} does not exist" if json_file else "the run did not save their path"
        source.missing.append(
            f"The annotations of {source.dataset} were not found ({reason}), so the detections were not analyzed."
        )
        return
    source.truth = read_annotations(json_file)
    source.detections = read_detections(source.detections_file)
    root = metadata.get("image_root")
    if root and Path(root).is_dir():
        source.image_root = Path(root)
    else:
        source.missing.append(f"The images of {source.dataset} were not found, so no pictures are shown.")


def describe_dataset(name: str, truth: dict | None = None) -> str:
    """Return the name and size of a dataset as ``shapes_val: 60 images, 291 objects``.

    Only the name is returned if the annotations are not given and were not found, or are too large
    to be read for this.

    Args:
        name: registered name of the dataset.
        truth: the annotations, if they were read already.
    """
    path = MetadataCatalog.get(name).get("json_file") if name in DatasetCatalog else None
    if truth is None and path and Path(path).is_file() and Path(path).stat().st_size <= _MAX_BYTES:
        try:
            truth = read_annotations(path)
        except GNDetError:
            return f"{name} (its annotations cannot be read)"
    if truth is None:
        return name
    objects = sum(not row.get("iscrowd") for row in truth["annotations"])
    return f"{name}: {len(truth['images']):,} images, {objects:,} objects"
