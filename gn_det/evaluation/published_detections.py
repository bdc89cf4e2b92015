"""The published AP of a model, recomputed from the detections that were published with it."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from ..data.coco import register_annotations
from ..download.fetch import fetch
from ..errors import GNDetError
from ..metrics import METRICS
from ..zoo import index as zoo
from .evaluator import COCOEvaluator, read_detections

IMAGES = 5000  # of COCO val2017, which Detectron calls coco_2014_minival
TOLERANCE = 0.1  # AP; what is published is rounded to one digit
_KINDS = {"bbox": ("box", "bbox"), "segm": ("mask", "segmentation")}  # task -> its name in a record, and in a detection


@dataclass(frozen=True)
class Check:
    """AP of one task ("bbox" or "segm") as published and as found on ``images`` images, in percent.

    ``left_out`` counts the detections on images that the annotations do not have.
    """

    task: str
    published: float
    found: dict[str, float]
    images: int
    left_out: int

    @property
    def failed(self) -> bool:
        """Whether AP on all images is not what was published."""
        return self.images == IMAGES and not abs(self.found["AP"] - self.published) <= TOLERANCE


def check_published(
    name: str, annotations: str | Path, files: Mapping[str, str | Path] | None = None
) -> tuple[Check, ...]:
    """Evaluate the published detections of an entry of the model zoo with the stock evaluator.

    Args:
        annotations: COCO's instances_val2017.json, or some of its images.
        files: {"bbox": file, "segm": file} of detections that are here already, one or both. Without them both are fetched.

    Raises:
        GNDetError: there is no such entry, none of its detections were published, or a file cannot be had or is not that.
    """
    entry = zoo.get_entry(name)
    if not entry.detections:
        known = ", ".join(other for other in zoo.names() if zoo.get_entry(other).detections)
        raise GNDetError(f"No detections were published of {name}; they were of {known}.")
    with tempfile.TemporaryDirectory() as folder:
        facts = register_annotations("published_detections", annotations, Path(folder) / "annotations.json")
        if facts["images"] > IMAGES:
            raise GNDetError(
                f"{annotations} has {facts['images']} images, and COCO val2017 {IMAGES}: it is another set."
            )
        return tuple(_check(entry, task, path, facts["images"]) for task, path in (files or _fetch(entry)).items())


def _fetch(entry: zoo.Entry) -> dict[str, Path]:
    return {task: fetch(url) for task, url in entry.detections.items()}


def _check(entry: zoo.Entry, task: str, path: str | Path, images: int) -> Check:
    kind, key = _KINDS[task]
    rows = read_detections(path)
    if not all(key in row for row in rows):
        raise GNDetError(f"{path} has detections without a {key!r}: it is not the file of the {task} task.")
    evaluator = COCOEvaluator("published_detections", tasks=(task,), distributed=False)
    known = rows
    if images < IMAGES:
        there = {*evaluator._coco_api.getImgIds()}
        known = [row for row in rows if row["image_id"] in there]
        if rows and not known:
            raise GNDetError(f"{path} has detections on none of the {images} images of the annotations.")
    evaluator.load_detections(known, path)
    found = evaluator.evaluate()[task]
    return Check(task, entry.published[kind], found, images, len(rows) - len(known))


def format_checks(name: str, checks: tuple[Check, ...]) -> str:
    """A table of published and found AP, and what may be made of it."""
    rows = [
        [f"{_KINDS[c.task][0]} AP", c.published, c.found["AP"], c.found["AP"] - c.published]
        + [c.found[metric] for metric in METRICS[1:]]
        for c in checks
    ]
    headers = [name, "published", "here", "difference", *METRICS[1:]]
    table = tabulate(rows, headers, tablefmt="github", floatfmt=("", ".1f", ".2f", "+.2f", *[".1f"] * len(METRICS[1:])))
    return f"{table}\n\n{_verdict(checks)}"


def _verdict(checks: tuple[Check, ...]) -> str:
    images, left_out = checks[0].images, max(check.left_out for check in checks)
    if images < IMAGES:
        text = f"These are {images} of the {IMAGES} images of COCO val2017: the differences say nothing."
        return text + f" {left_out} detections on other images were left out." * bool(left_out)
    if failed := [_KINDS[check.task][0] for check in checks if check.failed]:
        return f"All {IMAGES} images: {' and '.join(failed)} AP is not the published one (more than {TOLERANCE} off)."
    return f"All {IMAGES} images: as published."
