"""Recompute the published AP of a model from the detections that were published with it."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from ..data.coco import register_annotations
from ..download.fetch import fetch
from ..errors import GNDetError
from ..metrics import METRICS, RECORD_KEYS
from ..zoo import index as zoo
from .detections import read_detections
from .evaluator import COCOEvaluator
from .hotcoco_data import SHAPE_KEYS

NUM_IMAGES = 5000  # in COCO val2017, which Detectron calls coco_2014_minival
TOLERANCE = 0.1  # AP; the published values are rounded to one digit


@dataclass(frozen=True)
class Check:
    """Published and recomputed AP of one task.

    Attributes:
        task: "bbox" or "segm".
        published: AP in percent.
        found: the recomputed metrics (AP, AP50, ...) in percent.
        images: number of images that were evaluated.
        left_out: number of detections that were not used, because they are on other images.
    """

    task: str
    published: float
    found: dict[str, float]
    images: int
    left_out: int

    @property
    def failed(self) -> bool:
        """Whether AP on all images differs from the published value by more than ``TOLERANCE``."""
        return self.images == NUM_IMAGES and not abs(self.found["AP"] - self.published) <= TOLERANCE


def check_published(
    name: str, annotations: str | Path, files: Mapping[str, str | Path] | None = None
) -> tuple[Check, ...]:
    """Evaluate the published detections of a model in the zoo with :class:`COCOEvaluator`.

    Args:
        name: the model's name in the zoo.
        annotations: COCO's instances_val2017.json, or a subset of its images.
        files: local files of the detections, {"bbox": file, "segm": file} or one of them. By
            default both are downloaded.

    Returns:
        one check per task.

    Raises:
        GNDetError: the zoo has no such model, its detections were not published, a download fails,
            or a file does not fit the annotations or the task.
    """
    entry = zoo.get_entry(name)
    if not entry.detections:
        known = ", ".join(other for other in zoo.names() if zoo.get_entry(other).detections)
        raise GNDetError(f"No detections were published for {name}; use one of {known}.")
    with tempfile.TemporaryDirectory() as folder:
        facts = register_annotations("published_detections", annotations, Path(folder) / "annotations.json")
        if facts["images"] > NUM_IMAGES:
            raise GNDetError(
                f"{annotations} has {facts['images']} images, but COCO val2017 has {NUM_IMAGES}; pass the annotations "
                "of COCO val2017 or of a subset."
            )
        return tuple(_check(entry, task, path, facts["images"]) for task, path in (files or _fetch(entry)).items())


def _fetch(entry: zoo.Entry) -> dict[str, Path]:
    return {task: fetch(url) for task, url in entry.detections.items()}


def _check(entry: zoo.Entry, task: str, path: str | Path, images: int) -> Check:
    key = SHAPE_KEYS[task]
    rows = read_detections(path)
    if not all(key in row for row in rows):
        raise GNDetError(f"{path} has detections without {key!r}; pass the published file of the {task} task.")

    evaluator = COCOEvaluator("published_detections", tasks=(task,), distributed=False)
    used = rows
    if images < NUM_IMAGES:
        image_ids = {*evaluator._coco_api.getImgIds()}
        used = [row for row in rows if row.get("image_id") in image_ids]
        if rows and not used:
            raise GNDetError(
                f"{path} has no detections on any of the {images} images of the annotations; pass annotations of "
                "COCO val2017."
            )
    evaluator.load_detections(used, path)
    found = evaluator.evaluate()[task]
    return Check(task, entry.published[RECORD_KEYS[task]], found, images, len(rows) - len(used))


def format_checks(name: str, checks: tuple[Check, ...]) -> str:
    """Format published and recomputed AP as a table, followed by whether they agree."""
    rows = [
        [f"{RECORD_KEYS[c.task]} AP", c.published, c.found["AP"], c.found["AP"] - c.published]
        + [c.found[metric] for metric in METRICS[1:]]
        for c in checks
    ]
    headers = [name, "published", "here", "difference", *METRICS[1:]]
    table = tabulate(rows, headers, tablefmt="github", floatfmt=("", ".1f", ".2f", "+.2f", *[".1f"] * len(METRICS[1:])))
    return f"{table}\n\n{_verdict(checks)}"


def _verdict(checks: tuple[Check, ...]) -> str:
    images, left_out = checks[0].images, max(check.left_out for check in checks)
    if images < NUM_IMAGES:
        text = (
            f"Only {images} of the {NUM_IMAGES} images of COCO val2017 were evaluated, so the differences mean nothing."
        )
        return text + f" {left_out} detections on other images were left out." * bool(left_out)
    if failed := [RECORD_KEYS[check.task] for check in checks if check.failed]:
        return (
            f"All {NUM_IMAGES} images were evaluated. The published {' and '.join(failed)} AP was not reproduced: "
            f"the difference is above {TOLERANCE}."
        )
    return f"All {NUM_IMAGES} images were evaluated. The published AP was reproduced."
