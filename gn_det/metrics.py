"""The names of what an evaluation measures: as detectron2 has them (``bbox/AP``), and as a record does (``box``, ``AP``)."""

import math

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # in percent, see evaluation.py
RECALLS = ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_IN_RECORD = {"bbox": "box", "segm": "mask"}


def metric_names(cfg: CfgNode) -> list[str]:
    """All that an evaluation of this config measures, the AP of each class among it: ``bbox/AP``, ``segm/AP-circle``."""
    classes = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("thing_classes", []) if cfg.DATASETS.TEST else []
    per_class = [f"AP-{name}" for name in classes] if len(classes) > 1 else []  # as detectron2 does
    kinds = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
    return [f"{kind}/{name}" for kind in kinds for name in (*METRICS, *RECALLS, *per_class)]


def storage_key(cfg: CfgNode) -> str:
    """``TRAIN.METRIC`` on the first of ``DATASETS.TEST``, as detectron2's event storage names it."""
    several = len(cfg.DATASETS.TEST) > 1
    return f"{cfg.DATASETS.TEST[0]}/{cfg.TRAIN.METRIC}" if several else cfg.TRAIN.METRIC


def in_record(record: dict, metric: str) -> float:
    """The value of ``bbox/AP`` and the like in a result record; NaN where it has none."""
    kind, name = metric.split("/", 1)
    value = (record.get(_IN_RECORD[kind]) or {}).get(name)
    return math.nan if value is None else value
