"""Runs, annotations and detections for the tests of the report."""

import html
import json
import re
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools import mask as coco_mask

from gn_det.config.files import load_config
from gn_det.data.coco import read_annotations, register_annotations, register_coco_json
from gn_det.evaluation.run_folder import remember_datasets

NAME = "own_test_report_val"
SIDE = 96  # pixels of the images


def square(x: float, y: float, side: float = 40, *, category: int = 3, image: object = 0, **more) -> dict:
    """An annotation or detection with a square box."""
    return {"image_id": image, "category_id": category, "bbox": [x, y, side, side], **more}


def fruit(ids: tuple = (0, 5)) -> tuple[dict, list[dict]]:
    """Two images, the first with a fig, a pear and a crowd of figs; and a detection of each outcome."""
    truth = {
        "images": [{"id": number, "file_name": "x", "height": 200, "width": 200} for number in ids],
        "categories": [{"id": 9, "name": "plum"}, {"id": 3, "name": "fig"}, {"id": 5, "name": "pear"}],
        "annotations": [
            square(0, 0, image=ids[0]),
            square(100, 100, category=5, image=ids[0]),
            square(0, 100, 90, image=ids[0], iscrowd=1),
        ],
    }
    rows = [
        square(0, 0, image=ids[0], score=0.9),  # right
        square(0, 2, image=ids[0], score=0.8),  # the same fig again
        square(100, 100, image=ids[0], score=0.7),  # a fig, but the object is a pear
        square(10, 110, 30, image=ids[0], score=0.7),  # in the crowd: neither right nor wrong
        square(10, 110, category=5, image=ids[1], score=0.6),  # no object there
        square(10, 10, category=9, image=ids[1], score=0.4),  # below the minimum score
    ]
    return truth, rows


def jittered(truth: dict) -> list[dict]:
    """Detections of most objects, some of them inaccurate or of a wrong class, and false positives."""
    rng = np.random.default_rng(0)
    rows = []
    for number, row in enumerate(truth["annotations"]):
        x, y, w, h = row["bbox"]
        dx, dy = rng.normal(0, 2 + 12 * (number % 5 == 4), 2)
        points = [(np.reshape(polygon, (-1, 2)) + (dx, dy)).clip(0, SIDE).ravel() for polygon in row["segmentation"]]
        category = row["category_id"] if number % 4 else 1
        if number % 6 != 5:
            place = {"image_id": row["image_id"], "category_id": category, "bbox": [x + dx, y + dy, w, h]}
            polygons = [polygon.tolist() for polygon in points]
            rows.append({**place, "score": float(rng.uniform(0.3, 1)), "segmentation": _rle(polygons)})
    return rows


def _rle(polygons: list) -> dict:
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, SIDE, SIDE))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def unregister(name: str) -> None:
    """Remove a dataset from detectron2's catalogs."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)


def make_run(
    folder: Path, data: Path, rows: list | None, *, images: bool = False, names: tuple = (), truth: dict | None = None
) -> Path:
    """Write the OUTPUT_DIR of a run that was evaluated on NAME, which is not registered afterwards.

    Args:
        data: folder of generated shapes.
        rows: detections; None if the run was not evaluated.
        images: whether the run has saved the path of its images.
        names: new names of the classes.
        truth: annotations instead of those of the generated shapes.
    """
    truth = truth or read_annotations(data / "val.json")
    for category, name in zip(truth["categories"], names, strict=False):
        category["name"] = name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "in.json").write_text(json.dumps(truth))
    clean = folder / "data" / f"{NAME}.json"
    if images:
        register_coco_json(NAME, folder / "in.json", data / "val", clean)
    else:
        register_annotations(NAME, folder / "in.json", clean)
    remember_datasets(folder, (NAME,))
    unregister(NAME)
    opts = ["DATASETS.TRAIN", f"('{NAME}',)", "DATASETS.TEST", f"('{NAME}',)", "SEED", "3"]
    (folder / "config.yaml").write_text(load_config("quickstart_R18_FPN_gn_scratch", opts).dump())
    lines = [
        {"iteration": n, "total_loss": 3 - n / 100, "loss_cls": 2 - n / 100, "lr": 0.02, "time": 0.5} for n in (19, 39)
    ]
    lines += [{"iteration": n, "bbox/AP": float(n), "segm/AP": float(n)} for n in (20, 40)]
    lines.sort(key=lambda line: line["iteration"])
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    if rows is not None:
        path = detections_file(folder)
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(rows))
    return folder


def detections_file(folder: Path) -> Path:
    """The detections of the run."""
    return folder / "inference" / NAME / "coco_instances_results.json"


def write_record(folder: Path, **more) -> None:
    """Write the only result record of a run."""
    record = {
        "config": "quickstart_R18_FPN_gn_scratch",
        "dataset": NAME,
        "box": None,
        "mask": None,
        "date": "2026-01-01",
    }
    (folder / "records").mkdir(exist_ok=True)
    (folder / "records" / "r.json").write_text(json.dumps(record | more))


def visible(page: str) -> str:
    """The text of a page, without markup."""
    return " ".join(html.unescape(re.sub(r"<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)).split())
