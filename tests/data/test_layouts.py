"""Exports of labeling tools, made here in the layout that each tool writes: read as they are or after ``--fix``."""

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from gn_det import GNDetError
from gn_det.data.cleaning import Options
from gn_det.data.coco import check_annotations, read_annotations, register_coco_json, save_annotations

NAMES = ["a.jpg", "b.jpg"]
BOX = [10, 20, 30, 40]
POLYGON = [10, 20, 40, 20, 40, 60, 10, 60]


def via() -> dict:
    """VIA 2: the categories once for each image, image ids as text, one flat list of points, ids from 0."""
    categories = [{"id": 1, "name": "sum", "supercategory": "info"}, {"id": 2, "name": "day", "supercategory": "info"}]
    return {
        "info": {"year": 2026, "contributor": ""},
        "images": [
            {"id": n, "width": 80, "height": 100, "file_name": name, "license": 1, "date_captured": ""}
            for n, name in enumerate(NAMES)
        ],
        "annotations": [
            {"id": n, "image_id": str(n), "category_id": 1 + n, "segmentation": POLYGON, "area": 1200, "bbox": BOX}
            | {"iscrowd": 0}
            for n in range(2)
        ],
        "licenses": [{"id": 1, "name": "Unknown", "url": ""}],
        "categories": categories * 2,
    }


def cvat() -> dict:
    """CVAT 1.1: attributes, sizes as integers, areas as floats, a polygon at the border with a box of width 0."""
    image = {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0, "width": 80, "height": 100}
    other = {"area": 1200.0, "iscrowd": 0, "attributes": {"occluded": False, "rotation": 0.0}}
    runs = [10 * 100 + 20, *([40, 60] * 29), 40, 80 * 100 - 39 * 100 - 60]
    return {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "description": "", "url": "", "version": "", "year": ""},
        "categories": [{"id": 1, "name": "bolt", "supercategory": ""}, {"id": 2, "name": "nut", "supercategory": ""}],
        "images": [{"id": n, "file_name": name, **image} for n, name in enumerate(NAMES, 1)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [POLYGON], "bbox": [0.0, 20.0, 0.0, 40.0]}
            | other
            | {"area": 0.0},
            {"id": 2, "image_id": 2, "category_id": 2, "bbox": [10.0, 20.0, 30.0, 40.0], **other}
            | {"segmentation": {"counts": runs, "size": [100, 80]}},
        ],
    }


def roboflow() -> dict:
    """Roboflow: ids from 0, and a root category without objects that has the name of the project, here of a class."""
    return {
        "info": {"year": "2026", "version": "1", "description": "Exported from roboflow.com"},
        "licenses": [{"id": 1, "url": "", "name": "CC BY 4.0"}],
        "categories": [
            {"id": 0, "name": "facade", "supercategory": "none"},
            {"id": 1, "name": "door", "supercategory": "facade"},
            {"id": 2, "name": "facade", "supercategory": "facade"},
        ],
        "images": [
            {"id": n, "license": 1, "file_name": name, "height": 100, "width": 80, "extra": {"name": name}}
            for n, name in enumerate(NAMES)
        ],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1 + n, "bbox": BOX, "area": 1200.0, "segmentation": [POLYGON]}
            | {"iscrowd": 0}
            for n in range(2)
        ],
    }


def label_studio() -> dict:
    """Label Studio: paths of the server, categories from 0, rectangles without a mask, ``ignore``."""
    files = ["..\\..\\label-studio\\media\\upload\\4\\a.jpg", "/data/local-files/?d=images/b.jpg"]
    return {
        "images": [{"width": 80, "height": 100, "id": n, "file_name": name} for n, name in enumerate(files)],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
        "annotations": [
            {"id": 0, "image_id": 0, "category_id": 0, "segmentation": [], "bbox": BOX, "ignore": 0, "iscrowd": 0}
            | {"area": 1200},
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [POLYGON], "bbox": BOX, "ignore": 0}
            | {"iscrowd": 0, "area": 1200},
        ],
        "info": {"year": 2026, "version": "1.0", "contributor": "Label Studio"},
    }


def coco_annotator() -> dict:
    """COCO Annotator: fields of its own, ``iscrowd: false``, a path beside the file name, keypoints, an empty object."""
    image = {"dataset_id": 1, "category_ids": [], "width": 80, "height": 100, "annotated": True, "num_annotations": 1}
    other = {"iscrowd": False, "isbbox": False, "color": "#ff0000", "metadata": {}, "keypoints": [], "num_keypoints": 0}
    shape = {"segmentation": [POLYGON], "area": 1200, "bbox": [10.0, 20.0, 30.0, 40.0], "width": 80, "height": 100}
    empty = {"segmentation": [], "area": 0, "bbox": [0, 0, 0, 0], "width": 80, "height": 100}
    return {
        "images": [
            {"id": n, "path": f"/datasets/x/{name}", "file_name": name, "metadata": {}, **image}
            for n, name in enumerate(NAMES, 7)
        ],
        "categories": [
            {"id": n, "name": name, "supercategory": "", "color": "#fff", "metadata": {}, "keypoint_colors": []}
            for n, name in enumerate(["螺母", "螺栓"], 3)
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, **shape, **other},
            {"id": 2, "image_id": 8, "category_id": 4, **shape, **other},
            {"id": 3, "image_id": 8, "category_id": 4, **empty, **other},
        ],
    }


@pytest.fixture
def register(tmp_path):
    """A function that registers annotations, and returns their facts and the rows that detectron2 trains on."""
    for name in NAMES:
        Image.new("RGB", (80, 100)).save(tmp_path / name)

    def call(file: Path, masks: bool = True):
        facts = register_coco_json("test_layout", file, tmp_path, tmp_path / "clean.json", masks)
        return facts, DatasetCatalog.get("test_layout")

    yield call
    if "test_layout" in DatasetCatalog:
        DatasetCatalog.remove("test_layout")
        MetadataCatalog.remove("test_layout")


LAYOUTS = {
    via: (True, ["sum", "day"]),
    cvat: (False, ["bolt", "nut"]),
    roboflow: (False, ["door", "facade"]),
    label_studio: (False, ["cat", "dog"]),
    coco_annotator: (True, ["螺母", "螺栓"]),
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_layout_is_trained_on_as_it_is_or_after_one_fix(register, tmp_path, layout):
    as_it_is, classes = LAYOUTS[layout]
    file = tmp_path / "export.json"
    file.write_text(json.dumps(layout()))
    if not as_it_is:
        with pytest.raises(GNDetError, match="--fix NEW.json writes a repaired copy"):
            register(file)
        data = read_annotations(file)
        assert not any(p.action.name == "HAND" for p in check_annotations(data, Options(tmp_path, fix=True)).values())
        file = save_annotations(tmp_path / "fixed.json", data)
    facts, rows = register(file)
    objects = [a for row in rows for a in row["annotations"]]
    assert facts["classes"] == classes and facts["masks"] and facts["objects"] == len(objects) == 2
    assert [a["category_id"] for a in objects] == [0, 1] and [a["bbox"] for a in objects] == [BOX, BOX]
    assert all(a["iscrowd"] == 0 and a["segmentation"] for a in objects)
    assert [Path(row["file_name"]).name for row in rows] == NAMES


def test_rectangles_of_label_studio_are_trained_on_without_masks(register, tmp_path):
    data = label_studio()
    for row, name in zip(data["images"], NAMES, strict=True):
        row["file_name"] = name
    (tmp_path / "export.json").write_text(json.dumps(data))
    facts, rows = register(tmp_path / "export.json", masks=False)
    assert facts["objects"] == sum(len(row["annotations"]) for row in rows) == 2
