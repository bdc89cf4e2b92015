"""Names of the evaluation metrics in detectron2 (``bbox/AP``) and in result records (``box``, ``AP``)."""

import math
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # in percent
RECALLS = ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
COCO_LIMIT = 100  # detections per image that COCO's AP and AR count
RECORD_KEYS = {"bbox": "box", "segm": "mask"}  # task -> its key in a record


def metric_names_at(limit: int) -> list[str]:
    """Return the names of AP and AR with ``limit`` detections per image, such as ``AP@300``; [] up to 100."""
    return [f"AP@{limit}", f"AR@{limit}"] if limit > COCO_LIMIT else []


def metric_names(cfg: CfgNode) -> list[str]:
    """Return the names of all metrics of an evaluation, such as ``bbox/AP`` and ``segm/AP-circle``."""
    classes = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("thing_classes", []) if cfg.DATASETS.TEST else []
    per_class = [f"AP-{name}" for name in classes] if len(classes) > 1 else []  # as in detectron2
    kinds = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
    names = (*METRICS, *RECALLS, *metric_names_at(cfg.TEST.DETECTIONS_PER_IMAGE), *per_class)
    return [f"{kind}/{name}" for kind in kinds for name in names]


def storage_key(cfg: CfgNode) -> str:
    """Return the name of ``TRAIN.METRIC`` on the first test dataset in detectron2's event storage."""
    several = len(cfg.DATASETS.TEST) > 1
    return f"{cfg.DATASETS.TEST[0]}/{cfg.TRAIN.METRIC}" if several else cfg.TRAIN.METRIC


def metric_in_record(record: dict[str, Any], metric: str) -> float:
    """Return the value of a metric such as ``bbox/AP`` in a result record; NaN if the record lacks it."""
    kind, name = metric.split("/", 1)
    value = (record.get(RECORD_KEYS[kind]) or {}).get(name)
    return math.nan if value is None else value
