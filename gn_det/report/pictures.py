"""Predictions beside the truth as small JPEGs, drawn with detectron2's Visualizer."""

import base64
import io
import warnings
from pathlib import Path

import cv2
import numpy as np
from detectron2.data.detection_utils import read_image
from detectron2.utils.visualizer import GenericMask
from matplotlib.colors import to_rgb
from PIL import Image
from pycocotools import mask as coco_mask

from ..drawing.figures import PALETTE
from ..drawing.instances import LabelVisualizer
from .cases import Case, run_length

_SIDE = 400  # pixels of a picture's longer side
_CONTEXT = 1.0  # sides of the object's box that a close-up shows on each side of it
_LEAST = 48  # pixels of the image that a close-up shows at least
_STRAIGHT = 0.5  # pixels that an outline may be off its mask, so that it has few corners
_QUALITY = 80  # of the JPEGs
_NAME = 16  # letters of a class name that are drawn
_TEXT = 16  # pixels of the letters' height
_COLOURS = [to_rgb(code) for code in PALETTE]


class Album:
    """Draws the cases of one data set.

    Args:
        classes: {category id: (index, name)}.
    """

    def __init__(self, truth: dict, rows: list[dict], image_root: str | Path, classes: dict, min_score: float):
        self.truth, self.root, self.classes = truth, Path(image_root), classes
        self.objects: dict = {row["id"]: [] for row in truth["images"]}
        self.shown: dict = {row["id"]: [] for row in truth["images"]}
        for row in truth["annotations"]:
            self.objects[row["image_id"]].append(row)
        for row in rows:
            if row["score"] >= min_score:
                self.shown[row["image_id"]].append(row)

    def draw(self, case: Case) -> dict[str, str] | None:
        """{"predicted": data URI of a JPEG, "truth": likewise}, or None where the image cannot be read."""
        image = self.truth["images"][case.image]
        pixels = self._read(image)
        if pixels is None:
            return None
        view = _View(pixels, case.row)
        predicted = [(row, f"{row['score']:.2f}".removeprefix("0")) for row in self.shown[image["id"]]]
        truth = [(row, "crowd" * bool(row.get("iscrowd"))) for row in self.objects[image["id"]]]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # of a name in another script
            return {"predicted": self._side(view, predicted, case.row), "truth": self._side(view, truth, case.row)}

    def _read(self, image: dict) -> np.ndarray | None:
        name = str(image["file_name"])
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return None  # out of the image folder
        try:
            pixels = read_image(str(self.root / name), format="RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None
        return pixels if pixels.shape[:2] == (image["height"], image["width"]) else None

    def _side(self, view: "_View", rows: list[tuple[dict, str]], asked: dict | None) -> str:
        """One half; what a close-up is not about is drawn faintly."""
        canvas = LabelVisualizer(view.pixels, text_height=_TEXT)
        placed = [(view.box(row), row, note) for row, note in rows]
        placed.sort(key=lambda entry: -np.prod(entry[0][2:] - entry[0][:2]))  # small ones on top
        for box, row, note in placed:
            if not np.isfinite(box).all() or (box[:2] >= view.size).any() or (box[2:] <= 0).any():
                continue  # out of sight
            index, name = self.classes[row["category_id"]]
            color, strength = _COLOURS[index % len(_COLOURS)], 1.0 if asked is None or row is asked else 0.5
            for polygon in view.polygons(row.get("segmentation")):
                canvas.draw_polygon(polygon, color, alpha=0.35 * strength)
            box = np.clip(box, 1, np.tile(view.size - 1, 2))
            if row is asked:
                canvas.draw_box(box + (-2, -2, 2, 2), edge_color="w", alpha=1.0)
            canvas.draw_box(box, edge_color=color, alpha=strength)
            canvas.draw_text(_label(name, note), box[:2], color=color)
        buffer = io.BytesIO()
        Image.fromarray(canvas.get_output().get_image()).save(buffer, "JPEG", quality=_QUALITY, optimize=True)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _label(name: str, note: str) -> str:
    """Short, and on one line."""
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    name = name if len(name) <= _NAME else name[: _NAME - 1] + "…"
    return f"{name} {note}".strip()


class _View:
    """An image, or a close-up of an annotation in it, at the size in which it is shown; and its geometry there."""

    def __init__(self, pixels: np.ndarray, row: dict | None):
        full = np.array(pixels.shape[1::-1])
        self.image_size = pixels.shape[:2]
        whole: tuple[np.ndarray, np.ndarray] = np.zeros(2), full
        self.corner, size = whole if row is None else _close_up(self._xywh(row), full)
        self.scale = _SIDE / max(size)
        self.size = np.maximum(np.rint(size * self.scale), 1).astype(int)  # width, height
        (x, y), (w, h) = self.corner.astype(int), size.astype(int)
        part = Image.fromarray(pixels[y : y + h, x : x + w])
        self.pixels = np.asarray(part.resize(tuple(self.size.tolist()), Image.Resampling.LANCZOS))

    def _xywh(self, row: dict) -> np.ndarray:
        """In the image; of the mask where the row has no box."""
        box = row.get("bbox")
        return np.array(
            coco_mask.toBbox(run_length(row["segmentation"], *self.image_size)) if box is None else box, float
        )

    def box(self, row: dict) -> np.ndarray:
        """x0, y0, x1, y1 in the view."""
        x, y, w, h = self._xywh(row)
        return ((np.array([[x, y], [x + w, y + h]]) - self.corner) * self.scale).ravel()

    def polygons(self, segmentation: dict | list | None) -> list[np.ndarray]:
        """Outlines (P, 2) in the view."""
        if not segmentation:
            return []
        if isinstance(segmentation, dict):
            mask = coco_mask.decode(run_length(segmentation, *self.image_size))
            segmentation = GenericMask(mask, *self.image_size).polygons
        points = ((np.reshape(polygon, (-1, 2)) - self.corner) * self.scale for polygon in segmentation)
        return [cv2.approxPolyDP(polygon.astype(np.float32), _STRAIGHT, closed=True)[:, 0] for polygon in points]


def _close_up(box: np.ndarray, full: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corner and size, in whole pixels of the image, of what is shown around x, y, w, h."""
    side = np.maximum(box[2:].max() * (1 + 2 * _CONTEXT), _LEAST)
    size = np.minimum(np.ceil((side, side)), full)
    corner = np.clip(np.rint(box[:2] + box[2:] / 2 - size / 2), 0, full - size)
    return corner, size
