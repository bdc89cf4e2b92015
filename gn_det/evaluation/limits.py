"""AP and AR with more detections per image than the 100 that COCO's metrics count."""

import logging
import math
from collections import Counter
from collections.abc import Iterable

import numpy as np

from ..data.checks import describe_many_objects
from ..metrics import metric_names_at

logger = logging.getLogger(__name__)


def metrics_at(limit: int, evaluation: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the metrics with ``limit`` detections per image in percent; {} up to 100.

    Args:
        evaluation: "precision" (T, R, K, A, M) and "recall" (T, K, A, M) of pycocotools, with ``limit`` as the
            last of the M limits.
    """
    values = (evaluation["precision"][:, :, :, 0, -1], evaluation["recall"][:, :, 0, -1])
    known = (array[array > -1] for array in values)
    means = [100 * float(array.mean()) if array.size else math.nan for array in known]
    return dict(zip(metric_names_at(limit), means, strict=False))


def warn_about_objects(name: str, annotations: Iterable[dict], limit: int) -> None:
    """Log a warning if images have more objects than the detections that COCO's metrics count.

    Args:
        name: of the dataset.
        annotations: in COCO's format.
        limit: detections per image that the evaluation counts.
    """
    counts = Counter(row["image_id"] for row in annotations if not row.get("iscrowd"))
    if sentence := describe_many_objects(counts.values(), limit):
        logger.warning(f"{name}: {sentence}")
