"""Statistics of a dataset and warnings about suspicious labels, boxes, object sizes and image files.

These are warnings: the data may be intended that way. Problems that would break training or evaluation
are refused when the dataset is registered (see :mod:`gn_det.data.coco`).
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
from pycocotools import mask as coco_mask
from tabulate import tabulate

from ..images import read_header

_MAX_HEADERS = 2000  # image files whose headers are read, evenly spaced over the dataset
_FEW_OBJECTS = 10  # a class with fewer objects gets a warning
_MAX_NAMES = 5  # names listed in a warning; the rest are counted


@dataclass(frozen=True)
class Objects:
    """The M objects of a dataset, without crowd regions.

    Attributes:
        image: (M,) index of the image.
        label: (M,) index of the class.
        box: (M, 4) x0, y0, x1, y1 in pixels of the image file.
        side: (M,) square root of the box area, in pixels after resizing for the model.
        masks: M segmentations in COCO format; None for an object without a mask.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    side: np.ndarray
    masks: list


@dataclass(frozen=True)
class Finding:
    """A warning about a dataset.

    Attributes:
        sentence: the warning.
        caption: a short form for the title of a picture; "" if no pictures are drawn for this warning.
        images: indices of the images to draw.
    """

    sentence: str
    caption: str = ""
    images: tuple[int, ...] = ()


def check_data(rows: list[dict], classes: list[str], cfg: CfgNode, train: bool = True) -> dict:
    """Compute statistics of a dataset in detectron2's format, and warnings about it.

    Args:
        rows: one dict per image, as ``DatasetCatalog.get`` returns them; category ids count from 0.
        classes: the names of the classes.
        cfg: the config, for the sizes of resized images and anchors.
        train: whether images are resized as in training (to the middle one of several sizes) or as in
            testing.

    Returns:
        A dict with

        - "images": number of images N
        - "empty": number of images without objects
        - "objects": number of objects, without crowd regions
        - "crowds": number of crowd regions
        - "sizes": (N, 2) width and height of the image files in pixels
        - "scales": (N,) factor by which each image is resized for the model
        - "classes": list with one dict per class: "class" is its name; "objects" and "images" are
          numbers; "smallest", "median" and "largest" are the square roots of box areas in pixels after
          resizing; "at_border" is the share of its objects that touch the border of their image, from 0
          to 1. The last four are None for a class without objects.
        - "findings": list of :class:`Finding`
    """
    scales = np.array([_scale(row, cfg, train) for row in rows])
    objects = _collect_objects(rows, scales)
    sizes = np.array([(row["width"], row["height"]) for row in rows], dtype=float).reshape(-1, 2)
    at_border = ((objects.box[:, :2] <= 1) | (objects.box[:, 2:] >= sizes[objects.image] - 1)).any(axis=1)
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
        "classes": [_class_row(name, objects, objects.label == index, at_border) for index, name in enumerate(classes)],
        "findings": findings,
    }


def _scale(row: dict, cfg: CfgNode, train: bool) -> float:
    """Return the factor by which an image is resized for the model."""
    shorts = cfg.INPUT.MIN_SIZE_TRAIN if train else (cfg.INPUT.MIN_SIZE_TEST,)
    short = sorted(shorts)[len(shorts) // 2]
    longest = cfg.INPUT.MAX_SIZE_TRAIN if train else cfg.INPUT.MAX_SIZE_TEST
    if not short:
        return 1.0
    height, _ = ResizeShortestEdge.get_output_shape(row["height"], row["width"], short, longest)
    return height / row["height"]


def _collect_objects(rows: list[dict], scales: np.ndarray) -> Objects:
    pairs = [(i, a) for i, row in enumerate(rows) for a in row.get("annotations", []) if not a.get("iscrowd")]
    image = np.array([index for index, _ in pairs], dtype=int)
    boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for _, a in pairs]
    box = np.array(boxes, dtype=float).reshape(-1, 4)
    side = np.sqrt(np.prod((box[:, 2:] - box[:, :2]).clip(0), axis=1)) * scales[image]
    label = np.array([a["category_id"] for _, a in pairs], dtype=int)
    return Objects(image, label, box, side, [a.get("segmentation") for _, a in pairs])


def _class_row(name: str, objects: Objects, in_class: np.ndarray, at_border: np.ndarray) -> dict:
    sides = objects.side[in_class]
    percentiles = np.percentile(sides, (0, 50, 100)) if len(sides) else (None, None, None)
    row = {"class": name, "objects": len(sides), "images": len(set(objects.image[in_class]))}
    row |= dict(zip(("smallest", "median", "largest"), percentiles, strict=True))
    return row | {"at_border": at_border[in_class].mean() if len(sides) else None}


def _join_names(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_MAX_NAMES]) + (f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else "")


def _class_findings(objects: Objects, classes: list[str]) -> Iterator[Finding]:
    counts = Counter(objects.label.tolist())
    if missing := [name for index, name in enumerate(classes) if not counts[index]]:
        yield Finding(f"{len(missing)} of {len(classes)} classes have no objects: {_join_names(missing)}.")
    few = [f"{name} ({counts[index]})" for index, name in enumerate(classes) if 0 < counts[index] < _FEW_OBJECTS]
    if few:
        yield Finding(f"Classes with fewer than {_FEW_OBJECTS} objects: {_join_names(few)}.")


def _image_findings(rows: list[dict], objects: Objects, empty_filtered: bool) -> Iterator[Finding]:
    if empty := sorted(set(range(len(rows))) - set(objects.image.tolist())):
        use = (
            "are left out of training by DATALOADER.FILTER_EMPTY_ANNOTATIONS"
            if empty_filtered
            else "count as background"
        )
        yield Finding(f"{len(empty)} of {len(rows)} images have no objects and {use}: {_file_names(rows, empty)}.")


def _file_names(rows: list[dict], images: Iterable[int]) -> str:
    return _join_names(Path(rows[image]["file_name"]).name for image in dict.fromkeys(images))


def _box_findings(rows: list[dict], objects: Objects, sizes: np.ndarray) -> Iterator[Finding]:
    if len(objects.box) and objects.box.max() <= 2:
        yield Finding(
            "All boxes lie within 2 pixels of the top left corner: are their coordinates relative to the image size "
            "instead of in pixels?"
        )
    outside = (objects.box[:, :2] < -1) | (objects.box[:, 2:] > sizes[objects.image] + 1)
    kinds = (
        (outside.any(axis=1), "box extends beyond the image", "extend beyond their image and are clipped to it"),
        (
            _mismatched_masks(objects),
            "box does not fit its mask",
            "do not fit their mask (is the format [x, y, width, height]?)",
        ),
        (_duplicates(objects), "duplicate object", "are nearly equal to another box of the same class"),
    )
    for bad, caption, problem in kinds:
        if bad.any():
            images = tuple(dict.fromkeys(objects.image[bad].tolist()))
            yield Finding(f"{bad.sum()} of {len(bad)} boxes {problem}: {_file_names(rows, images)}.", caption, images)


def _mismatched_masks(objects: Objects) -> np.ndarray:
    """Return (M,) whether the IoU of an object's box and the bounding box of its mask is below 0.5."""
    mask_boxes = np.full_like(objects.box, np.nan)
    for index, mask in enumerate(objects.masks):
        if isinstance(mask, list) and mask:
            points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in mask])
            mask_boxes[index] = [*points.min(axis=0), *points.max(axis=0)]
        elif isinstance(mask, dict):
            x, y, width, height = coco_mask.toBbox(mask)
            mask_boxes[index] = [x, y, x + width, y + height]
    return _iou(objects.box, mask_boxes) < 0.5


def _duplicates(objects: Objects) -> np.ndarray:
    """Return (M,) whether an earlier object of the same image and class has nearly the same box."""
    duplicates = np.zeros(len(objects.image), dtype=bool)
    order = np.lexsort((objects.label, objects.image))
    group_starts = (np.diff(objects.image[order]) != 0) | (np.diff(objects.label[order]) != 0)
    for group in np.split(order, np.flatnonzero(group_starts) + 1):
        for position, index in enumerate(group[1:], start=1):
            duplicates[index] = (_iou(objects.box[group[:position]], objects.box[index]) > 0.95).any()
    return duplicates


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the intersection over union of boxes of shape (..., 4), row by row; NaN for a box with NaN."""
    common = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    intersection = np.prod(common.clip(0), axis=-1)
    areas = [np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1) for boxes in (first, second)]
    return intersection / (areas[0] + areas[1] - intersection)


def _scale_findings(objects: Objects, scales: np.ndarray, anchors: list[float]) -> Iterator[Finding]:
    small, large = min(anchors) / 2, max(anchors) * 2
    bounds = (
        (objects.side < small, "tiny object", "smaller", f"{small:g} pixels (half the smallest anchor)", "increase"),
        (objects.side > large, "huge object", "larger", f"{large:g} pixels (twice the largest anchor)", "decrease"),
    )
    for bad, caption, comparative, limit, remedy in bounds:
        if bad.any():
            yield Finding(
                f"{bad.sum()} of {len(bad)} objects are {comparative} than {limit} after resizing and hard to learn: "
                f"{remedy} INPUT.MIN_SIZE_TRAIN and INPUT.MIN_SIZE_TEST, or change MODEL.ANCHOR_GENERATOR.SIZES.",
                caption,
                tuple(dict.fromkeys(objects.image[bad].tolist())),
            )
    if len(scales) and np.median(scales) > 2:
        yield Finding(
            f"Images are enlarged {np.median(scales):.1f} times, which costs time and memory: INPUT.MIN_SIZE_TRAIN and "
            "INPUT.MIN_SIZE_TEST can be smaller."
        )


def _file_findings(rows: list[dict]) -> Iterator[Finding]:
    sample = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MAX_HEADERS)).astype(int)).tolist()
    headers = {index: read_header(rows[index]["file_name"]) for index in sample}
    rotated = tuple(index for index, header in headers.items() if header.orientation != 1)
    deep = tuple(i for i, header in headers.items() if header.mode in ("I", "F") or header.mode.startswith("I;16"))
    if rotated:
        yield Finding(
            f"{len(rotated)} of {len(headers)} checked image files are rotated by detectron2 because of their EXIF "
            f"orientation: {_file_names(rows, rotated)}. Check that their boxes fit the rotated image.",
            "rotated by EXIF",
            rotated,
        )
    if deep:
        yield Finding(
            f"{len(deep)} of {len(headers)} checked image files have more than 8 bits per channel: "
            f"{_file_names(rows, deep)}. detectron2 clips their values at 255, so that they become white or black; "
            "convert them to 8 bits.",
            "more than 8 bits",
            deep,
        )


def format_check(name: str, check: dict) -> str:
    """Return the result of :func:`check_data` as text: a table of the classes and the warnings.

    Lines of warnings have up to 100 characters.
    """
    sizes = [f"{w:.0f} x {h:.0f}" for w, h in (check["sizes"].min(axis=0), check["sizes"].max(axis=0))]
    scales = [f"{scale:.2f}" for scale in (check["scales"].min(), check["scales"].max())]
    title = (
        f"{name}: {check['images']} images of {' to '.join(dict.fromkeys(sizes))} pixels, {check['objects']} objects, "
        f"{check['crowds']} crowd regions.\nImages are scaled by {' to '.join(dict.fromkeys(scales))} for the model."
    )
    names = ("class", "objects", "images", "smallest px", "median px", "largest px", "at the border")
    rows = [[*row.values()][:-1] + [f"{row['at_border']:.0%}"] for row in check["classes"] if row["objects"]]
    table = tabulate(rows, names, tablefmt="github", floatfmt=".0f", missingval="-")
    note = "px: square root of the box area, in pixels after resizing for the model."
    warnings = [finding.sentence for finding in check["findings"]] or ["none."]
    lines = [fill(f"- {sentence}", 100, subsequent_indent="  ") for sentence in warnings]
    return "\n".join([title, "", table, note, "", "Warnings:", *lines])
