"""Read and check masks in COCO format: polygons and run lengths, and the other forms that programs write.

A run-length mask is {"size": [height, width], "counts": runs}. The runs are the lengths of alternating
background and object down the columns, as a list or as COCO's compressed text.
"""

import ast
import contextlib
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from .values import as_numbers, as_whole, is_numbers

_MIN_FIT = 0.7  # IoU of the box and the bounding box of a mask, from which on they are of the same object


def normalize_mask(mask: Any) -> Any:
    """Return a mask with lists of numbers instead of other forms of the same values.

    These are numbers as text, one flat list of points (VIA), a list of points [x, y], runs as floats, and
    compressed runs as the text of Python's bytes. A mask that needs no change is returned itself; so is one
    that cannot be read.
    """
    if type(mask) is list and mask:
        return mask if all(map(is_numbers, mask)) else _normalize_polygons(mask)
    if type(mask) is dict and not _has_plain_runs(mask):
        return _normalize_runs(mask)
    return mask


def _normalize_polygons(mask: list) -> list:
    polygons = mask if any(type(part) is list for part in mask) else [mask]
    if all(type(part) is list and len(part) == 2 and as_numbers(part) for part in polygons):
        polygons = [polygons]  # one polygon of points
    flat = [_flatten(polygon) for polygon in polygons]
    numbers = [as_numbers(polygon) for polygon in flat]
    return mask if None in numbers else numbers


def _flatten(values: Any) -> Any:
    """Return a list of pairs as one list, and anything else as it is."""
    if type(values) is list and values and all(type(part) is list and len(part) == 2 for part in values):
        return [value for part in values for value in part]
    return values


def _has_plain_runs(mask: dict) -> bool:
    size, counts = mask.get("size"), mask.get("counts")
    if type(size) is not list or set(map(type, size)) != {int}:
        return False
    return (
        not counts.startswith("b") if type(counts) is str else type(counts) is list and set(map(type, counts)) <= {int}
    )


def _normalize_runs(mask: dict) -> dict:
    changed = dict(mask)
    size, counts = mask.get("size"), _flatten(mask.get("counts"))
    if type(size) is list and size and None not in (sides := [as_whole(side) for side in size]):
        changed["size"] = sides
    if type(counts) is list and None not in (runs := [as_whole(run) for run in counts]):
        changed["counts"] = runs
    if type(counts) is str and counts[:2] in ("b'", 'b"'):
        with contextlib.suppress(ValueError, SyntaxError):
            changed["counts"] = ast.literal_eval(counts).decode("ascii")
    return mask if repr(changed) == repr(mask) else changed  # 1.0 equals 1


def is_empty(mask: Any) -> bool:
    """Return whether a segmentation is missing: null, or a list without numbers."""
    return not mask or (type(mask) is list and not any(part or part == 0 for part in mask))


def is_polygon(values: Any) -> bool:
    """Return whether a value is a list [x1, y1, x2, y2, ...] of at least 3 points."""
    return is_numbers(values) and len(values) >= 6 and len(values) % 2 == 0


def read_runs(counts: Any) -> np.ndarray | None:
    """Return the run lengths, (N,) int64, of a list or of COCO's compressed text; None if they cannot be read."""
    if type(counts) is list:
        good = counts and set(map(type, counts)) <= {int} and max(counts) < 2**40 and min(counts) >= 0
        return np.array(counts, dtype=np.int64) if good else None
    if type(counts) is not str or not counts.isascii():
        return None
    # 5 bits per character from "0" on, lowest first; 32 marks that more follow, 16 in the last one is the sign.
    code = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    if not len(code) or code.min() < 0 or code.max() > 63 or code[-1] & 32:
        return None
    ends = np.flatnonzero(code & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(code)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 7:
        return None
    values = np.add.reduceat((code & 31) << (5 * place), starts)
    values -= np.where(code[ends] & 16, 1 << (5 * (ends - starts + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])  # from the fourth on, each is the difference to the one before the last
    values[2::2] = np.cumsum(values[2::2])
    return values if values.min() >= 0 else None


def fits_image(mask: Any, height: int, width: int) -> bool:
    """Return whether a run-length mask has the size of the image, and as many pixels."""
    if type(mask) is not dict or mask.get("size") != [height, width]:
        return False
    runs = read_runs(mask.get("counts"))
    return runs is not None and int(runs.sum()) == height * width


def reread_runs(mask: dict, height: int, width: int, box: list) -> dict | None:
    """Find the reading of a run-length mask that fits its box.

    These readings are tried: runs down the columns or along the rows, with the last one cut or extended to
    the end of the image; and pairs of start and length, counted from 0 or 1.

    Args:
        box: x, y, width, height.

    Returns:
        the mask in COCO format; None if no reading fits.
    """
    runs, pixels = read_runs(mask.get("counts")), height * width
    if runs is None:
        return None
    flat = [_fill(np.cumsum(runs)[:-1][::2], runs[1::2], pixels)]
    if len(runs) % 2 == 0 and (np.diff(runs[::2]) > 0).all():
        flat += [_fill(runs[::2] - first, runs[1::2], pixels) for first in (0, 1)]
    readings = [line.reshape((height, width), order=order) for line in flat for order in ("F", "C")]
    best = max(readings, key=lambda pixels: _fit(pixels, box))
    if _fit(best, box) < _MIN_FIT:
        return None
    found = coco_mask.encode(np.asfortranarray(best, dtype=np.uint8))
    return {"size": [height, width], "counts": found["counts"].decode("ascii")}


def _fill(starts: np.ndarray, lengths: np.ndarray, pixels: int) -> np.ndarray:
    """Return (pixels,) bool, True in the runs of these starts and lengths."""
    line = np.zeros(pixels, dtype=bool)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=False):
        line[max(start, 0) : max(start + length, 0)] = True
    return line


def _fit(pixels: np.ndarray, box: list) -> float:
    """Return the IoU of a box and the bounding box of a mask, (height, width) bool."""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if not len(rows):
        return 0.0
    x0, y0, x1, y1 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    x, y, w, h = box
    common = max(min(x1, x + w) - max(x0, x), 0) * max(min(y1, y + h) - max(y0, y), 0)
    return float(common / ((x1 - x0) * (y1 - y0) + w * h - common))


def box_of_mask(mask: Any) -> list[float] | None:
    """Return the box [x, y, width, height] around a valid mask; None if it is empty or there is none."""
    if type(mask) is dict:
        box = coco_mask.toBbox(_compressed(mask)).tolist()
    elif mask:
        x, y = [v for part in mask for v in part[::2]], [v for part in mask for v in part[1::2]]
        box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
    else:
        return None
    return box if box[2] > 0 and box[3] > 0 else None


def area_of_mask(mask: Any) -> float:
    """Return the area of a valid mask in pixels; 0 if there is none."""
    if type(mask) is dict:
        return float(coco_mask.area(_compressed(mask)))
    return sum(_polygon_area(np.array(part[::2]), np.array(part[1::2])) for part in mask or ())


def _polygon_area(x: np.ndarray, y: np.ndarray) -> float:
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _compressed(mask: dict) -> dict:
    return coco_mask.frPyObjects(mask, *mask["size"]) if type(mask["counts"]) is list else mask


def box_as_polygon(box: list) -> list[list[float]]:
    """Return the polygon of a box [x, y, width, height]."""
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]
