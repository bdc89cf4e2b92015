"""Write a page about annotations: their problems, classes, object sizes and samples."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.datasets import load_coco_json

from ..data.checks import Finding, check_data, sides_of
from ..data.coco import save_annotations
from ..data.rules import Problems
from ..files import save_text
from .cases import Case
from .figures import Drawing, anchor_histogram
from .page import load_template, stylesheet
from .pictures import Album

_SAMPLES = 12


def write_data_page(
    path: str | Path, name: str, data: dict, image_root: str | Path, problems: Problems, cfg: CfgNode
) -> Path:
    """Write a page about annotations as one HTML file that needs no other file.

    Args:
        path: of the page.
        name: of the annotations.
        data: the annotations, as :func:`gn_det.data.coco.check_annotations` has repaired them.
        image_root: the image folder.
        problems: what was found in them.
        cfg: the config, for the sizes of resized images and anchors.

    Returns:
        the path.

    Raises:
        GNDetError: the page cannot be written.
    """
    data = _with_files(data, Path(image_root))
    rows = _load(data, image_root)
    classes = [row["name"] for row in sorted(data["categories"], key=lambda row: row["id"])]
    check = check_data(rows, classes, cfg)
    findings = [finding.sentence for finding in check["findings"]]
    text = load_template("data.html").render(
        css=stylesheet(),
        name=name,
        check=check,
        problems=list(problems.values()),
        findings=findings,
        most=max((row["objects"] for row in check["classes"]), default=0),
        sizes=_draw_sizes(rows, cfg),
        samples=_draw_samples(data, image_root, check["findings"]),
        config=cfg.MODEL.GN.CONFIG or "the config",
    )
    return save_text(path, text, name=f"The page {path}", errors="xmlcharrefreplace")


def _with_files(data: dict, root: Path) -> dict:
    """Return the part of the annotations whose images exist."""
    images = [row for row in data["images"] if (root / row["file_name"]).is_file()]
    if len(images) == len(data["images"]):
        return data
    ids = {row["id"] for row in images}
    return data | {"images": images, "annotations": [row for row in data["annotations"] if row["image_id"] in ids]}


def _load(data: dict, image_root: str | Path) -> list[dict]:
    """Return annotations in detectron2's format, with category ids from 0."""
    indices = {number: index for index, number in enumerate(sorted(row["id"] for row in data["categories"]))}
    with tempfile.TemporaryDirectory() as folder:
        rows = load_coco_json(str(save_annotations(Path(folder, "data.json"), data)), str(image_root))
    for row in rows:
        for annotation in row["annotations"]:
            annotation["category_id"] = indices[annotation["category_id"]]
    return rows


def _draw_sizes(rows: list[dict], cfg: CfgNode) -> Drawing | None:
    side = sides_of(rows, cfg)
    if not len(side):
        return None
    anchors = sorted({size for level in cfg.MODEL.ANCHOR_GENERATOR.SIZES for size in level})
    low, high = anchors[0] / 2, anchors[-1] * 2
    inside = np.mean((side >= low) & (side <= high))
    alt = (
        f"Histogram of the sizes of {len(side)} objects after resizing: {inside:.0%} are between {low:g} and {high:g} "
        "pixels, half the smallest and twice the largest anchor."
    )
    note = f"Dashed lines: anchors. {inside:.0%} of the objects are between half the smallest and twice the largest."
    return anchor_histogram("Object sizes and anchors", side, anchors, alt, note)


def _draw_samples(data: dict, image_root: str | Path, findings: list[Finding]) -> list[dict[str, Any]]:
    """Draw samples: the first image of each finding, and others evenly spaced over the dataset."""
    captions = {finding.images[0]: finding.caption for finding in findings if finding.images}
    number = len(data["images"])
    spaced = np.linspace(0, number - 1, min(number, _SAMPLES)).astype(int).tolist() if number else []
    chosen = sorted(list(dict.fromkeys([*captions, *spaced]))[:_SAMPLES])
    order = sorted(data["categories"], key=lambda row: row["id"])
    classes = {row["id"]: (index, row["name"]) for index, row in enumerate(order)}
    ids = {data["images"][index]["id"] for index in chosen}
    part = data | {"annotations": [row for row in data["annotations"] if row["image_id"] in ids]}
    album = Album(part, [], image_root, classes, min_score=1.0)
    samples = []
    for index in chosen:
        if pictures := album.draw(Case(index, "")):
            name, caption = Path(data["images"][index]["file_name"]).name, captions.get(index, "")
            samples.append({"picture": pictures["truth"], "name": name, "caption": caption})
    return samples
