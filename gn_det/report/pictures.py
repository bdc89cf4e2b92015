"""Draw predictions and ground truth on images, as small JPEGs for the report."""

import base64
import io
from pathlib import Path

import cv2
import numpy as np
from detectron2.utils.visualizer import GenericMask
from matplotlib.colors import to_rgb
from PIL import Image
from pycocotools import mask as coco_mask

from ..data.paths import is_inside
from ..drawing.figures import PALETTE
from ..drawing.instances import LabelVisualizer
from ..errors import GNDetError
from ..images import read_image
from .cases import Case, to_compressed_rle

_LONG_SIDE = 400  # pixels of the longer side of a picture
_CONTEXT = 1.0  # margin of a close-up on each side, in longer sides of the box
_MIN_CLOSE_UP = 48  # smallest side of a close-up, in pixels of the image
_OUTLINE_ERROR = 0.5  # pixels; outlines are simplified to within this distance
_QUALITY = 80  # of the JPEGs
_MAX_NAME = 16  # letters of a class name that are drawn
_TEXT_HEIGHT = 16  # pixels
_COLORS = [to_rgb(code) for code in PALETTE]


class Album:
    """Draws the pictures of one dataset.

    Args:
        truth: what :func:`gn_det.data.coco.read_annotations` returns.
        rows: detections in COCO's result format.
        image_root: folder of the images.
        classes: {category id: (index, name)}.
        min_score: detections with a lower score are not drawn.
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
        """Draw the detections and the ground truth of a case.

        Returns:
            {"predicted": JPEG as a data URI, "truth": JPEG as a data URI}, or None if the image
                cannot be read.
        """
        image = self.truth["images"][case.image]
        pixels = self._read(image)
        if pixels is None:
            return None
        view = _View(pixels, case.row)
        predicted = [(row, f"{row['score']:.2f}".removeprefix("0")) for row in self.shown[image["id"]]]
        truth = [(row, "crowd" * bool(row.get("iscrowd"))) for row in self.objects[image["id"]]]
        return {
            "predicted": self._picture(view, predicted, case.row),
            "truth": self._picture(view, truth, case.row),
        }

    def _read(self, image: dict) -> np.ndarray | None:
        """Return the pixels of an image.

        Returns:
            None if the file is outside the image folder, cannot be read, or has another size.
        """
        name = str(image["file_name"])
        if not is_inside(self.root, name):
            return None
        try:
            pixels = read_image(self.root / name, "RGB")
        except GNDetError:
            return None
        return pixels if pixels.shape[:2] == (image["height"], image["width"]) else None

    def _picture(self, view: "_View", rows: list[tuple[dict, str]], subject: dict | None) -> str:
        """Draw annotations or detections, and return the picture as a data URI.

        Args:
            rows: (annotation or detection, text after the name of its class).
            subject: the row that a close-up shows, which gets a white frame; the others are drawn
                fainter.
        """
        canvas = LabelVisualizer(view.pixels, text_height=_TEXT_HEIGHT)
        placed = [(view.box(row), row, note) for row, note in rows]
        placed.sort(key=lambda entry: -np.prod(entry[0][2:] - entry[0][:2]))  # small ones last, on top
        for box, row, note in placed:
            if not np.isfinite(box).all() or (box[:2] >= view.size).any() or (box[2:] <= 0).any():
                continue  # outside the view
            index, name = self.classes[row["category_id"]]
            color, strength = _COLORS[index % len(_COLORS)], 1.0 if subject is None or row is subject else 0.5
            for polygon in view.polygons(row.get("segmentation")):
                canvas.draw_polygon(polygon, color, alpha=0.35 * strength)
            box = np.clip(box, 1, np.tile(view.size - 1, 2))
            if row is subject:
                canvas.draw_box(box + (-2, -2, 2, 2), edge_color="w", alpha=1.0)
            canvas.draw_box(box, edge_color=color, alpha=strength)
            canvas.draw_text(_label(name, note), box[:2], color=color)
        buffer = io.BytesIO()
        Image.fromarray(canvas.get_output().get_image()).save(buffer, "JPEG", quality=_QUALITY, optimize=True)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _label(name: str, note: str) -> str:
    """Return the name of the class, shortened and on one line, with the note."""
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    name = name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"
    return f"{name} {note}".strip()


class _View:
    """An image, or a close-up of one of its annotations or detections, resized for the report.

    Args:
        pixels: (height, width, 3), RGB, uint8.
        row: what the close-up shows; None for the whole image.

    Attributes:
        pixels: (height, width, 3) of the view.
        size: (width, height) of the view in its pixels.
        corner: x, y of the view in the image.
        scale: pixels of the view per pixel of the image.
    """

    def __init__(self, pixels: np.ndarray, row: dict | None):
        full_size = np.array(pixels.shape[1::-1])
        self.image_size = pixels.shape[:2]
        whole: tuple[np.ndarray, np.ndarray] = np.zeros(2), full_size
        self.corner, size = whole if row is None else _close_up(self._xywh(row), full_size)
        self.scale = _LONG_SIDE / max(size)
        self.size = np.maximum(np.rint(size * self.scale), 1).astype(int)
        (x, y), (w, h) = self.corner.astype(int), size.astype(int)
        part = Image.fromarray(pixels[y : y + h, x : x + w])
        self.pixels = np.asarray(part.resize(tuple(self.size.tolist()), Image.Resampling.LANCZOS))

    def _xywh(self, row: dict) -> np.ndarray:
        """Return the box in the image, computed from the mask if the row has no box."""
        box = row.get("bbox")
        if box is None:
            box = coco_mask.toBbox(to_compressed_rle(row["segmentation"], *self.image_size))
        return np.array(box, float)

    def box(self, row: dict) -> np.ndarray:
        """Return the box as x0, y0, x1, y1 in the view."""
        x, y, w, h = self._xywh(row)
        return ((np.array([[x, y], [x + w, y + h]]) - self.corner) * self.scale).ravel()

    def polygons(self, segmentation: dict | list | None) -> list[np.ndarray]:
        """Return the simplified outlines of a mask, each (P, 2), in the view."""
        if not segmentation:
            return []
        if isinstance(segmentation, dict):
            mask = coco_mask.decode(to_compressed_rle(segmentation, *self.image_size))
            segmentation = GenericMask(mask, *self.image_size).polygons
        points = ((np.reshape(polygon, (-1, 2)) - self.corner) * self.scale for polygon in segmentation)
        return [cv2.approxPolyDP(polygon.astype(np.float32), _OUTLINE_ERROR, closed=True)[:, 0] for polygon in points]


def _close_up(box: np.ndarray, image_size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return corner and size of the close-up of a box, in whole pixels of the image.

    Args:
        box: x, y, width, height.
        image_size: width, height.
    """
    side = np.maximum(box[2:].max() * (1 + 2 * _CONTEXT), _MIN_CLOSE_UP)
    size = np.minimum(np.ceil((side, side)), image_size)
    corner = np.clip(np.rint(box[:2] + box[2:] / 2 - size / 2), 0, image_size - size)
    return corner, size
