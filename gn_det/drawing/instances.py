"""Pictures of what a model found, and of that beside the truth."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from detectron2.utils.visualizer import GenericMask, Visualizer
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw

_MIN_SIDE = 480  # pixels of the shorter side of a drawn image, so that names can be read on small ones
_LONG_SIDE = 2000  # up to which a thin image is enlarged for that
_MAX_SIDE = 4096  # larger images are drawn smaller: nobody sees more, and it takes gigabytes

Colour = tuple[float, float, float]  # RGB, from 0 to 1
# Bright, and far apart.
_PALETTE = [
    to_rgb(code)
    for code in "#e6194b #3cb44b #ffe119 #4363d8 #f58231 #f032e6 #42d4f4 #bfef45 #911eb4 #fabed4 #469990 #dcbeff".split()
]


class Colours:
    """Boxes -> a colour each, by which neighbours differ. Called with frame after frame, an object keeps its own."""

    def __init__(self) -> None:
        self._boxes, self._indices = Boxes(torch.zeros(0, 4)), list[int]()

    def __call__(self, boxes: Boxes) -> list[Colour]:
        grown = Boxes(boxes.tensor + torch.tensor([-2.0, -2.0, 2.0, 2.0]))  # pixels: touching boxes overlap
        near, before = pairwise_iou(grown, grown) > 0, pairwise_iou(boxes, self._boxes)
        indices: list[int] = []
        for i in range(len(boxes)):
            taken = {index for j, index in enumerate(indices) if near[i, j]}
            own = [self._indices[j] for j in before[i].argsort(descending=True) if before[i, j] > 0.5]
            order = own + [(i + k) % len(_PALETTE) for k in range(len(_PALETTE))]
            indices.append(next((index for index in order if index not in taken), order[0]))
        self._boxes, self._indices = boxes, indices
        return [_PALETTE[index] for index in indices]


class LabelVisualizer(Visualizer):
    """detectron2's, with labels that are large enough to be read, stay in the picture, and avoid each other.

    Args:
        text_height: pixels of the picture; by default what suits its size.
    """

    def __init__(
        self, image: np.ndarray, metadata: Metadata | None = None, scale: float = 1.0, text_height: float | None = None
    ):
        super().__init__(image, metadata, scale)
        side = scale * np.sqrt(self.output.height * self.output.width)
        self._text_height = text_height or max(min(14, side / 16), side / 55)
        self._labels = np.zeros((0, 4))  # x0, y0, x1, y1 in the image's pixels

    def draw_text(self, text: str, position: tuple[float, float], *, color="g", **kwargs):
        """Black or white on ``color``, above ``position`` if there is room; size and alignment are not the caller's."""
        points = self._text_height * 72 / self.output.dpi
        ink = "black" if np.dot(color, (0.299, 0.587, 0.114)) > 0.5 else "white"
        chip = {"facecolor": color, "alpha": 0.85, "pad": points / 8, "edgecolor": "none"}
        label = self.output.ax.text(
            0, 0, text, size=points, family="sans-serif", color=ink, bbox=chip, va="top", zorder=10, parse_math=False
        )
        extent = label.get_window_extent(self.output.canvas.get_renderer())
        pad = points / 4 * self.output.dpi / 72
        size = np.array([extent.width + pad, extent.height + pad]) / self.output.scale
        room = np.maximum([self.output.width, self.output.height] - size, 0)
        places = [np.clip(np.array(position) + (0, lines * size[1]), 0, room) for lines in (-1, 0, 1, -2, 2, 3)]
        place = min(places, key=lambda place: self._covered(place, place + size))
        label.set_position(place + pad / 2 / self.output.scale)
        self._labels = np.vstack([self._labels, np.concatenate([place, place + size])])
        return self.output

    def _covered(self, low: np.ndarray, high: np.ndarray) -> float:
        sides = np.minimum(self._labels[:, 2:], high) - np.maximum(self._labels[:, :2], low)
        return np.prod(np.maximum(sides, 0), axis=1).sum()


def draw_instances(
    image: np.ndarray, instances: Instances, metadata: Metadata, colours: Colours | None = None, *, enlarge: bool = True
) -> np.ndarray:
    """Masks, boxes, names and scores on an image.

    Args:
        image: (height, width, 3), RGB, uint8.
        instances: as a predictor gives them; the masks may be run-length encoded.
        metadata: its ``thing_classes`` are the names.
        colours: hand over the same one for each frame of a video.
        enlarge: draw a small image larger, and one above 4096 pixels smaller, so that all can be read.

    Returns:
        the picture, RGB, uint8.
    """
    boxes = instances.pred_boxes
    tints = (colours or Colours())(boxes)
    picture = image.copy()
    masks = [_encode(mask) for mask in instances.pred_masks] if instances.has("pred_masks") else []
    for mask, tint in sorted(zip(masks, tints, strict=False), key=lambda pair: mask_util.area(pair[0]), reverse=True):
        inside = mask_util.decode(mask).astype(bool)
        picture[inside] = 0.55 * picture[inside] + 0.45 * 255 * np.array(tint)
    canvas = LabelVisualizer(picture, metadata, _scale(image) if enlarge else 1.0)
    for mask, tint in zip(masks, tints, strict=False):
        for outline in GenericMask(mask, *image.shape[:2]).polygons:
            canvas.draw_polygon(outline.reshape(-1, 2), tint, alpha=0)
    for box, tint in zip(boxes, tints, strict=True):
        canvas.draw_box(box.tolist(), edge_color=tint, alpha=0.9)
    names = metadata.thing_classes
    for box, tint, number, score in zip(boxes, tints, instances.pred_classes, instances.scores, strict=True):
        canvas.draw_text(f"{names[number]} {score:.0%}", box[:2].tolist(), color=tint)
    return canvas.output.get_image()


def _encode(mask: torch.Tensor | dict) -> dict:
    return mask if isinstance(mask, dict) else mask_util.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))


def _scale(image: np.ndarray) -> float:
    short, long = sorted(image.shape[:2])
    return min(max(1.0, min(_MIN_SIDE / short, _LONG_SIDE / long)), _MAX_SIDE / long)


def draw_predictions(
    dataset_name: str, detections_file: str | Path, folder: str | Path, *, number: int = 6, min_score: float = 0.5
) -> list[Path]:
    """Draw detections (left) beside the truth (right) for images spread over the data set.

    Args:
        detections_file: ``coco_instances_results.json`` as the evaluator writes it, scores from 0 to 1.

    Returns:
        the pictures' paths, one an image.
    """
    rows = DatasetCatalog.get(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    by_image = defaultdict(list)
    for row in json.loads(Path(detections_file).read_text()):
        if row["score"] >= min_score:
            by_image[row["image_id"]].append(row)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in np.linspace(0, len(rows) - 1, min(number, len(rows))).astype(int):
        row = rows[index]
        image = read_image(row["file_name"], format="RGB")
        detections = _instances(by_image[row["image_id"]], image.shape[:2], metadata)
        left = draw_instances(image, detections, metadata)
        right = LabelVisualizer(image, metadata, _scale(image)).draw_dataset_dict(row).get_image()
        names = (f"predicted (score >= {min_score})", "truth")
        paths.append(folder / f"{Path(row['file_name']).stem}.png")
        _side_by_side((left, right), names).save(paths[-1])
    return paths


def _instances(rows: list[dict], size: tuple[int, int], metadata) -> Instances:
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
    bar, gap = 24, 8
    height, width = images[0].shape[:2]
    sheet = Image.new("RGB", (len(images) * (width + gap) - gap, height + bar), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (image, title) in enumerate(zip(images, titles, strict=True)):
        left = number * (width + gap)
        draw.text((left + 4, 4), title, fill="black", font_size=15)
        sheet.paste(Image.fromarray(image), (left, bar))
    return sheet


def contact_sheet(images: list[np.ndarray], titles: list[str], columns: int, width: int) -> Image.Image:
    """Images (H, W, 3) in rows, each fitted into ``width`` x ``width`` pixels, under its title of two lines."""
    bar, gap = 42, 8
    scaled = [Image.fromarray(image) for image in images]
    scaled = [image.resize([max(1, side * width // max(image.size)) for side in image.size]) for image in scaled]
    rows = [range(start, min(start + columns, len(scaled))) for start in range(0, len(scaled), columns)]
    heights = [bar + max(scaled[number].height for number in row) + gap for row in rows]
    sheet = Image.new("RGB", (columns * (width + gap) - gap, sum(heights) - gap), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (image, title) in enumerate(zip(scaled, titles, strict=True)):
        left, top = number % columns * (width + gap), sum(heights[: number // columns])
        draw.text((left + 4, top + 3), title, fill="black", font_size=15)
        sheet.paste(image, (left, top + bar))
    return sheet
