"""What a data set holds and what in it looks wrong: labels, boxes, scale and files, said before anything is trained.

What cannot work is refused when the data set is registered (datasets.py). What is said here can be meant so.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as coco_mask
from tabulate import tabulate

from ..errors import GNDetError

_ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
_HEADERS = 2000  # image files whose headers are read, spread over the data set
_FEW = 10  # objects of a class, below which it is named
_SHOWN = 5  # names that are written out; the rest are counted


@dataclass(frozen=True)
class Objects:
    """The M objects of a data set, crowds left out.

    Attributes:
        image: (M,) index of the image.
        label: (M,) index of the class.
        box: (M, 4) x0, y0, x1, y1 in pixels of the file.
        side: (M,) square root of the box's area, in pixels of the image as the model gets it.
        masks: M segmentations in COCO's form, or None.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    side: np.ndarray
    masks: list


@dataclass(frozen=True)
class Finding:
    """Something odd: a sentence, a few words for a picture's title, and the images that it is about."""

    sentence: str
    words: str = ""
    images: tuple[int, ...] = ()


def check_data(rows: list[dict], classes: list[str], cfg: CfgNode, train: bool = True) -> dict:
    """Facts on a data set in detectron2's format.

    Args:
        rows: one dict an image; category ids count from 0.
        classes: their names.
        cfg: for the size of images as the model gets them, and of its anchors.
        train: whether they are scaled as in training (by the middle of several sizes), or as in testing.

    Returns:
        {"images", "empty" (images without objects), "objects", "crowds": numbers, "scales": (M,) by which each image is
        scaled, "classes": [{"class", "objects", "images", "smallest", "median", "largest" (sides in pixels as the model
        gets them), "cut" (share at the border)}, ...], "findings": list of :class:`Finding`}.
    """
    scales = np.array([_scale(row, cfg, train) for row in rows])
    objects = _objects(rows, scales)
    sizes = np.array([(row["width"], row["height"]) for row in rows], dtype=float).reshape(-1, 2)
    cut = ((objects.box[:, :2] <= 1) | (objects.box[:, 2:] >= sizes[objects.image] - 1)).any(axis=1)
    findings = [
        *_class_findings(objects, classes),
        *_image_findings(rows, objects, train and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS),
        *_box_findings(rows, objects, sizes),
        *_scale_findings(objects, scales, [size for level in cfg.MODEL.ANCHOR_GENERATOR.SIZES for size in level]),
        *_file_findings(rows),
    ]
    return {
        "images": len(rows),
        "empty": len(rows) - len(set(objects.image)),
        "objects": len(objects.image),
        "crowds": sum(bool(a.get("iscrowd")) for row in rows for a in row.get("annotations", [])),
        "sizes": sizes,
        "scales": scales,
        "classes": [_class_row(name, objects, objects.label == index, cut) for index, name in enumerate(classes)],
        "findings": findings,
    }


def _scale(row: dict, cfg: CfgNode, train: bool) -> float:
    shorts = cfg.INPUT.MIN_SIZE_TRAIN if train else (cfg.INPUT.MIN_SIZE_TEST,)
    short = sorted(shorts)[len(shorts) // 2]
    longest = cfg.INPUT.MAX_SIZE_TRAIN if train else cfg.INPUT.MAX_SIZE_TEST
    if not short:
        return 1.0
    height, _ = ResizeShortestEdge.get_output_shape(row["height"], row["width"], short, longest)
    return height / row["height"]


def _objects(rows: list[dict], scales: np.ndarray) -> Objects:
    pairs = [(n, a) for n, row in enumerate(rows) for a in row.get("annotations", []) if not a.get("iscrowd")]
    image = np.array([number for number, _ in pairs], dtype=int)
    boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for _, a in pairs]
    box = np.array(boxes, dtype=float).reshape(-1, 4)
    side = np.sqrt(np.prod((box[:, 2:] - box[:, :2]).clip(0), axis=1)) * scales[image]
    label = np.array([a["category_id"] for _, a in pairs], dtype=int)
    return Objects(image, label, box, side, [a.get("segmentation") for _, a in pairs])


def _class_row(name: str, objects: Objects, mine: np.ndarray, cut: np.ndarray) -> dict:
    sides = objects.side[mine]
    numbers = np.percentile(sides, (0, 50, 100)) if len(sides) else (None, None, None)
    row = {"class": name, "objects": len(sides), "images": len(set(objects.image[mine]))}
    row |= dict(zip(("smallest", "median", "largest"), numbers, strict=True))
    return row | {"cut": cut[mine].mean() if len(sides) else None}


def _list(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _class_findings(objects: Objects, classes: list[str]) -> Iterator[Finding]:
    counts = Counter(objects.label.tolist())
    if missing := [name for index, name in enumerate(classes) if not counts[index]]:
        yield Finding(f"Classes without an object, {len(missing)} of {len(classes)}: {_list(missing)}.")
    if few := [f"{name} ({counts[index]})" for index, name in enumerate(classes) if 0 < counts[index] < _FEW]:
        yield Finding(f"Classes with fewer than {_FEW} objects: {_list(few)}.")


def _image_findings(rows: list[dict], objects: Objects, filtered: bool) -> Iterator[Finding]:
    if empty := sorted(set(range(len(rows))) - set(objects.image.tolist())):
        what = "left out of training by DATALOADER.FILTER_EMPTY_ANNOTATIONS" if filtered else "background"
        yield Finding(f"Images without an object, {len(empty)} of {len(rows)}, {what}: {_names(rows, empty)}.")


def _names(rows: list[dict], images: Iterable[int]) -> str:
    return _list(Path(rows[image]["file_name"]).name for image in dict.fromkeys(images))


def _box_findings(rows: list[dict], objects: Objects, sizes: np.ndarray) -> Iterator[Finding]:
    if len(objects.box) and objects.box.max() <= 2:
        yield Finding(
            "All boxes lie within 2 pixels of the corner: are they given as shares of the image, not in pixels?"
        )
    outside = (objects.box[:, :2] < -1) | (objects.box[:, 2:] > sizes[objects.image] + 1)
    kinds = (
        (outside.any(axis=1), "box out of the image", "Boxes that reach out of their image, and are cut there"),
        (
            _unlike_masks(objects),
            "box unlike its mask",
            "Boxes that are not around their mask (is it [x, y, width, height]?)",
        ),
        (_doubles(objects), "object twice", "Objects with nearly the box of another one of their class"),
    )
    for bad, words, what in kinds:
        if bad.any():
            images = tuple(dict.fromkeys(objects.image[bad].tolist()))
            yield Finding(f"{what}, {bad.sum()} of {len(bad)}: {_names(rows, images)}.", words, images)


def _unlike_masks(objects: Objects) -> np.ndarray:
    """(M,) whether the box that a mask fills overlaps the object's own by less than half."""
    around = np.full_like(objects.box, np.nan)
    for number, mask in enumerate(objects.masks):
        if isinstance(mask, list) and mask:
            points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in mask])
            around[number] = [*points.min(axis=0), *points.max(axis=0)]
        elif isinstance(mask, dict):
            x, y, width, height = coco_mask.toBbox(mask)
            around[number] = [x, y, x + width, y + height]
    return _overlap(objects.box, around) < 0.5


def _doubles(objects: Objects) -> np.ndarray:
    """(M,) whether an earlier object of the same image and class has nearly the same box."""
    doubles = np.zeros(len(objects.image), dtype=bool)
    order = np.lexsort((objects.label, objects.image))
    other = (np.diff(objects.image[order]) != 0) | (np.diff(objects.label[order]) != 0)
    for group in np.split(order, np.flatnonzero(other) + 1):
        for place, number in enumerate(group[1:], start=1):
            doubles[number] = (_overlap(objects.box[group[:place]], objects.box[number]) > 0.95).any()
    return doubles


def _overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (..., 4), row by row; NaN where one is."""
    common = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    inside = np.prod(common.clip(0), axis=-1)
    areas = [np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1) for boxes in (first, second)]
    return inside / (areas[0] + areas[1] - inside)


def _scale_findings(objects: Objects, scales: np.ndarray, anchors: list[float]) -> Iterator[Finding]:
    small, large = min(anchors) / 2, max(anchors) * 2
    bounds = (
        (objects.side < small, "tiny objects", f"below {small:g} pixels a side, half of the smallest anchor", "larger"),
        (objects.side > large, "huge objects", f"above {large:g} pixels a side, twice the largest anchor", "smaller"),
    )
    for which, words, what, other in bounds:
        if which.any():
            yield Finding(
                f"Objects {what}, when the model gets them, {which.sum()} of {len(which)}: they are hard to learn; let "
                f"INPUT.MIN_SIZE_TRAIN and MIN_SIZE_TEST be {other}, or change MODEL.ANCHOR_GENERATOR.SIZES.",
                words,
                tuple(dict.fromkeys(objects.image[which].tolist())),
            )
    if len(scales) and np.median(scales) > 2:
        yield Finding(
            f"Images are enlarged {np.median(scales):.1f} times, which costs time and memory: INPUT.MIN_SIZE_TRAIN and "
            "MIN_SIZE_TEST can be smaller."
        )


def _file_findings(rows: list[dict]) -> Iterator[Finding]:
    looked_at = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _HEADERS)).astype(int)).tolist()
    headers = {number: _header(rows[number]["file_name"]) for number in looked_at}
    turned = tuple(number for number, (orientation, _) in headers.items() if orientation != 1)
    deep = tuple(number for number, (_, mode) in headers.items() if mode in ("I", "F") or mode.startswith("I;16"))
    if turned:
        yield Finding(
            f"Images that detectron2 turns, as their EXIF data say, {len(turned)}: {_names(rows, turned)}. Their boxes have "
            "to be those of the turned image; look whether they are.",
            "turned by EXIF",
            turned,
        )
    if deep:
        yield Finding(
            f"Images of more than 8 bits a channel, {len(deep)}: {_names(rows, deep)}. detectron2 clips them at 255, so "
            "that they come out white or black; convert them to 8 bits.",
            "more than 8 bits",
            deep,
        )


def _header(path: str) -> tuple[int, str]:
    try:
        with Image.open(path) as image:
            return image.getexif().get(_ORIENTATION, 1), image.mode
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise GNDetError(f"{path} cannot be read as an image ({type(error).__name__}).") from None


def format_check(name: str, check: dict) -> str:
    """The check as a table and sentences, in about 100 columns."""
    sizes = [f"{w:.0f} x {h:.0f}" for w, h in (check["sizes"].min(axis=0), check["sizes"].max(axis=0))]
    scales = [f"{scale:.2f}" for scale in (check["scales"].min(), check["scales"].max())]
    title = (
        f"{name}: {check['images']} images of {' to '.join(dict.fromkeys(sizes))} pixels, {check['objects']} objects, "
        f"{check['crowds']} crowds.\nThe model gets the images scaled by {' to '.join(dict.fromkeys(scales))}."
    )
    names = ("class", "objects", "images", "smallest px", "median px", "largest px", "at the border")
    rows = [
        [*row.values()][:-1] + ["-" if row["cut"] is None else f"{row['cut']:.0%}"]
        for row in check["classes"]
        if row["objects"]
    ]
    table = tabulate(rows, names, tablefmt="github", floatfmt=".0f", missingval="-")
    notes = "px: the square root of a box's area, in pixels of the image as the model gets it."
    found = [finding.sentence for finding in check["findings"]] or ["nothing."]
    lines = [fill(f"- {sentence}", 100, subsequent_indent="  ") for sentence in found]
    return "\n".join([title, "", table, notes, "", "To look at:", *lines])
