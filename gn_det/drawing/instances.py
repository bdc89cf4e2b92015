"""Draw predicted instances on images, alone or beside the ground truth."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from detectron2.utils.visualizer import GenericMask, Visualizer
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw

from ..images import read_image
from .fonts import image_font, with_fonts
from .names import picture_names

_MIN_SIDE = 480  # pixels; images with a shorter side are enlarged, so that names can be read
_MAX_ENLARGED = 2000  # pixels; no image is enlarged beyond this longer side
_MAX_SIDE = 4096  # pixels; images with a longer side are reduced, because drawing them needs gigabytes

Color = tuple[float, float, float]  # RGB, from 0 to 1
# Bright colors that are easy to distinguish.
_PALETTE = [
    to_rgb(code)
    for code in "#e6194b #3cb44b #ffe119 #4363d8 #f58231 #f032e6 #42d4f4 #bfef45 #911eb4 #fabed4 #469990 #dcbeff".split()
]


class Colors:
    """Assigns a color to each box, so that neighboring boxes differ.

    If it is called with one frame after another, an object that moves little keeps its color.
    """

    def __init__(self) -> None:
        self._boxes, self._indices = Boxes(torch.zeros(0, 4)), list[int]()

    def __call__(self, boxes: Boxes) -> list[Color]:
        """Return a color for each box of the next frame."""
        grown = Boxes(
            boxes.tensor + torch.tensor([-2.0, -2.0, 2.0, 2.0])
        )  # by 2 pixels, so that touching boxes overlap
        near, iou = pairwise_iou(grown, grown) > 0, pairwise_iou(boxes, self._boxes)
        indices: list[int] = []
        for i in range(len(boxes)):
            taken = {index for j, index in enumerate(indices) if near[i, j]}
            previous = [self._indices[j] for j in iou[i].argsort(descending=True) if iou[i, j] > 0.5]
            order = previous + [(i + k) % len(_PALETTE) for k in range(len(_PALETTE))]
            indices.append(next((index for index in order if index not in taken), order[0]))
        self._boxes, self._indices = boxes, indices
        return [_PALETTE[index] for index in indices]


class LabelVisualizer(Visualizer):
    """detectron2's Visualizer with readable labels that stay inside the picture and avoid overlaps.

    Args:
        text_height: in pixels of the picture; by default it depends on the size of the picture.

    The other arguments are those of detectron2's Visualizer.
    """

    def __init__(
        self, image: np.ndarray, metadata: Metadata | None = None, scale: float = 1.0, text_height: float | None = None
    ):
        super().__init__(image, metadata, scale)
        side = scale * np.sqrt(self.output.height * self.output.width)
        self._text_height = text_height or max(min(14, side / 16), side / 55)
        self._labels = np.zeros((0, 4))  # x0, y0, x1, y1 in the image's pixels

    def draw_text(self, text: str, position: tuple[float, float], *, color="g", **kwargs):
        """Draw black or white text on ``color``, above ``position`` if there is room.

        The arguments for font size, alignment and rotation are ignored.
        """
        points = self._text_height * 72 / self.output.dpi
        ink = "black" if np.dot(color, (0.299, 0.587, 0.114)) > 0.5 else "white"
        background = {"facecolor": color, "alpha": 0.85, "pad": points / 8, "edgecolor": "none"}
        text, families = with_fonts(text)
        style = {"size": points, "family": families, "color": ink, "bbox": background}
        label = self.output.ax.text(0, 0, text, va="top", zorder=10, parse_math=False, **style)
        extent = label.get_window_extent(self.output.canvas.get_renderer())
        pad = points / 4 * self.output.dpi / 72
        size = np.array([extent.width + pad, extent.height + pad]) / self.output.scale
        room = np.maximum([self.output.width, self.output.height] - size, 0)
        corners = [np.clip(np.array(position) + (0, lines * size[1]), 0, room) for lines in (-1, 0, 1, -2, 2, 3)]
        corner = min(corners, key=lambda corner: self._overlap(corner, corner + size))
        label.set_position(corner + pad / 2 / self.output.scale)
        self._labels = np.vstack([self._labels, np.concatenate([corner, corner + size])])
        return self.output

    def _overlap(self, low: np.ndarray, high: np.ndarray) -> float:
        """Return the area in which a rectangle covers the labels drawn so far."""
        sides = np.minimum(self._labels[:, 2:], high) - np.maximum(self._labels[:, :2], low)
        return np.prod(np.maximum(sides, 0), axis=1).sum()


def draw_instances(
    image: np.ndarray, instances: Instances, metadata: Metadata, colors: Colors | None = None, *, enlarge: bool = True
) -> np.ndarray:
    """Draw masks, boxes, class names and scores on an image.

    Args:
        image: (height, width, 3), RGB, uint8.
        instances: with ``pred_boxes``, ``pred_classes``, ``scores`` and, optionally,
            ``pred_masks``, which may be run-length encoded.
        metadata: with the class names in ``thing_classes``.
        colors: pass the same object for all frames of a video, so that objects keep their colors.
        enlarge: whether to enlarge a small image so that the names can be read, and to reduce an
            image whose longer side is above 4096 pixels. If False, the picture has the size of the
            image.

    Returns:
        the picture, (height, width, 3), RGB, uint8.
    """
    boxes = instances.pred_boxes
    box_colors = (colors or Colors())(boxes)
    picture = image.copy()
    masks = [_encode(mask) for mask in instances.pred_masks] if instances.has("pred_masks") else []
    pairs = list(zip(masks, box_colors, strict=False))  # no pairs without masks
    for mask, color in sorted(pairs, key=lambda pair: mask_util.area(pair[0]), reverse=True):
        inside = mask_util.decode(mask).astype(bool)
        picture[inside] = 0.55 * picture[inside] + 0.45 * 255 * np.array(color)
    canvas = LabelVisualizer(picture, metadata, _scale(image) if enlarge else 1.0)
    for mask, color in pairs:
        for outline in GenericMask(mask, *image.shape[:2]).polygons:
            canvas.draw_polygon(outline.reshape(-1, 2), color, alpha=0)
    for box, color in zip(boxes, box_colors, strict=True):
        canvas.draw_box(box.tolist(), edge_color=color, alpha=0.9)
    names = metadata.thing_classes
    for box, color, index, score in zip(boxes, box_colors, instances.pred_classes, instances.scores, strict=True):
        canvas.draw_text(f"{names[index]} {score:.0%}", box[:2].tolist(), color=color)
    return canvas.output.get_image()


def _encode(mask: torch.Tensor | dict) -> dict:
    return mask if isinstance(mask, dict) else mask_util.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))


def _scale(image: np.ndarray) -> float:
    """Return the factor by which the image is enlarged or reduced."""
    short, long = sorted(image.shape[:2])
    return min(max(1.0, min(_MIN_SIDE / short, _MAX_ENLARGED / long)), _MAX_SIDE / long)


def draw_predictions(
    dataset_name: str, detections_file: str | Path, folder: str | Path, *, number: int = 6, min_score: float = 0.5
) -> list[Path]:
    """Draw detections (left) beside the ground truth (right) on evenly spaced images of a dataset.

    Args:
        dataset_name: registered name of the dataset.
        detections_file: the evaluator's ``coco_instances_results.json``.
        folder: where to write the pictures, named as the images, in the same folders below it.
        number: of images.
        min_score: detections with a lower score are not drawn.

    Returns:
        the path of each picture.
    """
    rows = DatasetCatalog.get(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    by_image = defaultdict(list)
    for row in json.loads(Path(detections_file).read_text()):
        if row["score"] >= min_score:
            by_image[row["image_id"]].append(row)
    names = picture_names([row["file_name"] for row in rows])
    paths = []
    for index in np.linspace(0, len(rows) - 1, min(number, len(rows))).astype(int):
        row = rows[index]
        image = read_image(row["file_name"], "RGB")
        detections = _instances(by_image[row["image_id"]], image.shape[:2], metadata)
        left = draw_instances(image, detections, metadata)
        right = LabelVisualizer(image, metadata, _scale(image)).draw_dataset_dict(row).get_image()
        titles = (f"predictions (score >= {min_score})", "ground truth")
        paths.append(Path(folder, f"{names[index]}.png"))
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        _side_by_side((left, right), titles).save(paths[-1])
    return paths


def _instances(rows: list[dict], size: tuple[int, int], metadata: Metadata) -> Instances:
    """Convert detections in COCO's result format to Instances."""
    instances = Instances(size)
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    instances.pred_boxes = Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
    instances.scores = np.array([row["score"] for row in rows])
    ids = metadata.thing_dataset_id_to_contiguous_id
    instances.pred_classes = np.array([ids[row["category_id"]] for row in rows], dtype=int)
    if rows and "segmentation" in rows[0]:
        instances.pred_masks = [row["segmentation"] for row in rows]
    return instances


def _side_by_side(images: tuple[np.ndarray, ...], titles: tuple[str, ...]) -> Image.Image:
    """Place images of equal size in a row, each under its title."""
    title_height, gap = 24, 8
    height, width = images[0].shape[:2]
    sheet = Image.new("RGB", (len(images) * (width + gap) - gap, height + title_height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (image, title) in enumerate(zip(images, titles, strict=True)):
        left = number * (width + gap)
        draw.text((left + 4, 4), title, fill="black", font_size=15)
        sheet.paste(Image.fromarray(image), (left, title_height))
    return sheet


def contact_sheet(images: list[np.ndarray], titles: list[str], columns: int, width: int) -> Image.Image:
    """Place images in a grid, each resized to fit into a square, under its title.

    Args:
        images: each (H, W, 3), RGB, uint8.
        titles: each of at most two lines.
        columns: number of images per row.
        width: side of the square in pixels.
    """
    title_height, gap = 42, 8
    scaled = [Image.fromarray(image) for image in images]
    scaled = [image.resize([max(1, side * width // max(image.size)) for side in image.size]) for image in scaled]
    rows = [range(start, min(start + columns, len(scaled))) for start in range(0, len(scaled), columns)]
    heights = [title_height + max(scaled[number].height for number in row) + gap for row in rows]
    sheet = Image.new("RGB", (columns * (width + gap) - gap, sum(heights) - gap), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (image, title) in enumerate(zip(scaled, titles, strict=True)):
        left, top = number % columns * (width + gap), sum(heights[: number // columns])
        draw.text((left + 4, top + 3), title, fill="black", font=image_font(title, 15))
        sheet.paste(image, (left, top + title_height))
    return sheet
