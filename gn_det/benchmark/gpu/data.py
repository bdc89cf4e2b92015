"""The images of the benchmark: a dataset in COCO format, or generated shapes, read by detectron2's loader."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_train_loader
from detectron2.utils.env import seed_all_rng

from ...data.coco import register_again, register_coco_json
from ...data.shapes import generate

_NAME = "benchmark_train"
_SHAPES = {"num_train": 32, "num_val": 1, "size": 480, "max_size": 640}


def register(cfg: CfgNode, folder: Path, json_file: str | None, images: str | None) -> dict:
    """Register the training images, and set the keys of the config that depend on them.

    Args:
        cfg: changed in place.
        folder: where generated images and the cleaned copy of the annotations are written.
        json_file: annotations in COCO format. None: images of shapes are generated.
        images: the folder of the images.

    Returns:
        What :func:`register_in_worker` needs; "source", a sentence about the images for the record; "images"
        and "objects", their numbers.

    Raises:
        GNDetError: see :func:`gn_det.data.coco.register_coco_json`.
    """
    source = f"{json_file}, read by detectron2's training loader"
    if json_file is None:
        json_file, images = map(str, generate(folder / "shapes", **_SHAPES)["train"])  # type: ignore[arg-type]
        source = "synthetic images (generated shapes), read by detectron2's training loader"
    clean = folder / "data" / "train.json"
    facts = register_coco_json(_NAME, json_file, str(images), clean)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (_NAME,), ()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(facts["classes"])
    cfg.MODEL.MASK_ON = cfg.MODEL.MASK_ON and facts["masks"]
    if facts["rle"]:
        cfg.INPUT.MASK_FORMAT = "bitmask"
    return {
        "source": source,
        "images": facts["images"],
        "objects": facts["objects"],
        "json": str(clean.resolve()),
        "root": str(Path(str(images)).resolve()),
        "classes": facts["classes"],
        "ids": list(MetadataCatalog.get(_NAME).thing_dataset_id_to_contiguous_id),
    }


def register_in_worker(data: dict) -> None:
    """Register the dataset in another process.

    Args:
        data: the return value of :func:`register`.
    """
    register_again(_NAME, data["json"], data["root"], data["classes"], data["ids"])


def training_loader(cfg: CfgNode, batch: int, seed: int) -> "TimedLoader":
    """Return the training loader, which yields the same images in the same order for each candidate."""
    own = cfg.clone()
    own.SOLVER.IMS_PER_BATCH = batch
    seed_all_rng(seed)
    # detectron2's loader for all: gn_det's has another order of the images.
    return TimedLoader(build_detection_train_loader(own))


class TimedLoader:
    """A loader that measures how long its reader waits for data.

    Attributes:
        waited: seconds since this was last set to 0.
    """

    def __init__(self, loader: Iterable):
        self._loader = loader
        self.waited = 0.0

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._loader)
        while True:
            start = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - start
            yield batch


def test_images(cfg: CfgNode, count: int) -> list[dict]:
    """Return inputs for inference: the first images of the dataset at ``INPUT.MIN_SIZE_TEST``, on the CPU."""
    read = DatasetMapper(cfg, is_train=False)
    return [read(row) for row in DatasetCatalog.get(_NAME)[:count]]
