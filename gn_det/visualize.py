"""Pictures of predicted masks beside the truth."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode, Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image, ImageDraw

_MIN_SIDE = 480  # pixels of the shorter side of a drawn image, so that names can be read on small ones


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
        scale = max(1.0, _MIN_SIDE / min(image.shape[:2]))
        detections = _instances(by_image[row["image_id"]], image.shape[:2], metadata)
        left = Visualizer(image, metadata, scale=scale).draw_instance_predictions(detections)
        right = Visualizer(image, metadata, scale=scale).draw_dataset_dict(row)
        names = (f"predicted (score >= {min_score})", "truth")
        paths.append(folder / f"{Path(row['file_name']).stem}.png")
        _side_by_side((left.get_image(), right.get_image()), names).save(paths[-1])
    return paths


def _instances(rows: list[dict], size: tuple[int, int], metadata) -> Instances:
    instances = Instances(size)
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    instances.pred_boxes = BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
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
