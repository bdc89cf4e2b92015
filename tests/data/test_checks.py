"""Warnings about a data set: each one on data with that problem, and none on correct data."""

import copy

import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image

from gn_det import GNDetError
from gn_det.config.files import load_config
from gn_det.data.checks import check_data, format_check

CLASSES = ["cat", "dog"]


def annotation(box, label: int = 0, **fields) -> dict:
    x, y, w, h = box
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": label, "segmentation": [polygon]} | fields


@pytest.fixture
def rows(tmp_path) -> list[dict]:
    """Six images of 200 x 100 pixels without problems, ten objects of each class."""
    rows = []
    for number in range(6):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (200, 100)).save(path)
        objects = [annotation([10 + 40 * k, 20, 30, 40], (number + k) % 2) for k in range(4 if number < 4 else 2)]
        rows.append({"file_name": str(path), "width": 200, "height": 100, "annotations": objects})
    return rows


@pytest.fixture
def cfg():
    """A config that does not resize the images of ``rows`` in training; anchors of 32 to 512 pixels."""
    opts = [
        "INPUT.MIN_SIZE_TRAIN",
        "(100,)",
        "INPUT.MIN_SIZE_TEST",
        "200",
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS",
        "True",
    ]
    return load_config("mask_rcnn_R50_FPN_gn", opts)


def sentences(rows, cfg) -> list[str]:
    return [finding.sentence for finding in check_data(rows, CLASSES, cfg)["findings"]]


def test_statistics_of_correct_data_without_warnings(rows, cfg):
    rows[0]["annotations"].append(annotation([0, 0, 50, 50], iscrowd=1))
    check = check_data(rows, CLASSES, cfg)
    assert check["findings"] == []
    assert (check["images"], check["empty"], check["objects"], check["crowds"]) == (6, 0, 20, 1)
    side = np.sqrt(30 * 40)
    sides = {"smallest": side, "median": side, "largest": side}
    assert check["classes"][0] == pytest.approx({"class": "cat", "objects": 10, "images": 6, **sides, "at_border": 0.0})
    assert "Warnings:\n- none." in format_check("name", check)


def test_object_sizes_follow_the_resizing_of_the_split(rows, cfg):
    train, test = (check_data(rows, CLASSES, cfg, train=train)["classes"][0]["median"] for train in (True, False))
    assert test == pytest.approx(2 * train)
    cfg.INPUT.MAX_SIZE_TRAIN = 100  # the long side of 200 becomes 100
    assert check_data(rows, CLASSES, cfg)["scales"].tolist() == [0.5] * 6
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    assert check_data(rows, CLASSES, cfg)["scales"].tolist() == [1.0] * 6


def add_problem(rows: list[dict], kind: str) -> None:
    """Add one problem to the image 2.png, or to all images if the problem concerns all of them."""
    row, objects = rows[2], rows[2]["annotations"]
    all_objects = [a for r in rows for a in r["annotations"]]
    if kind == "missing":
        for a in all_objects:
            a["category_id"] = 0
    elif kind == "few":
        objects[0]["category_id"] = 1 - objects[0]["category_id"]
    elif kind == "empty":
        row["annotations"] = []
    elif kind == "corners":
        x, y, w, h = objects[3]["bbox"]
        objects[3]["bbox"] = [x, y, x + w, y + h]
    elif kind == "relative":
        for a in all_objects:
            a["bbox"], a["segmentation"] = [v / 200 for v in a["bbox"]], None
    elif kind == "duplicate":
        objects.append(copy.deepcopy(objects[0]))
    elif kind == "tiny":
        objects[0].update(annotation([10, 20, 12, 12], objects[0]["category_id"]))
    elif kind == "rotated":
        with Image.open(row["file_name"]) as image:
            exif = image.getexif()
            exif[0x0112] = 3
            image.save(row["file_name"], exif=exif)
    elif kind == "deep":
        Image.fromarray(np.zeros((100, 200), dtype=np.uint16)).save(row["file_name"])


WARNINGS = {
    "missing": "1 of 2 classes have no objects: dog.",
    "few": "Classes with fewer than 10 objects: ",
    "empty": "1 of 6 images have no objects and are left out of training by DATALOADER.FILTER_EMPTY_ANNOTATIONS: 2.png.",
    "corners": "1 of 20 boxes extend beyond their image and are clipped to it: 2.png.",
    "relative": "are their coordinates relative to the image size instead of in pixels?",
    "duplicate": "1 of 21 boxes are nearly equal to another box of the same class: 2.png.",
    "tiny": "1 of 20 objects are smaller than 16 pixels (half the smallest anchor) after resizing and hard to learn: ",
    "rotated": "1 of 6 checked image files are rotated by detectron2 because of their EXIF orientation: 2.png.",
    "deep": "1 of 6 checked image files have more than 8 bits per channel: 2.png.",
}


@pytest.mark.parametrize("kind", WARNINGS)
def test_each_problem_gives_its_warning(rows, cfg, kind):
    add_problem(rows, kind)
    found = check_data(rows, CLASSES, cfg)["findings"]
    (finding,) = [finding for finding in found if WARNINGS[kind] in finding.sentence]
    # These have a second warning: mismatched masks, tiny objects, and few objects of a class, respectively.
    assert len(found) == (2 if kind in ("corners", "relative", "empty") else 1)
    if finding.caption:
        assert finding.images == ((2,) if kind != "relative" else tuple(range(6)))


def test_box_given_as_corners_does_not_fit_its_mask(rows, cfg):
    add_problem(rows, "corners")
    warning = "1 of 20 boxes do not fit their mask (is the format [x, y, width, height]?): 2.png"
    assert any(warning in sentence for sentence in sentences(rows, cfg))


def test_run_length_masks_are_compared_with_their_boxes(rows, cfg):
    from pycocotools import mask

    pixels = np.zeros((100, 200), dtype=np.uint8, order="F")
    pixels[20:60, 10:40] = 1
    rows[0]["annotations"][0]["segmentation"] = mask.encode(pixels)
    assert sentences(rows, cfg) == []
    rows[1]["annotations"][1]["segmentation"] = mask.encode(pixels)  # the mask of another object
    warning = sentences(rows, cfg)[0]
    assert warning.startswith("1 of 20 boxes do not fit their mask") and warning.endswith(": 1.png.")


def test_duplicates_have_the_same_class_and_image(rows, cfg):
    rows[2]["annotations"].append(
        annotation(rows[2]["annotations"][0]["bbox"], 1 - rows[2]["annotations"][0]["category_id"])
    )
    assert sentences(rows, cfg) == []  # neither equal boxes in other images nor those of another class


def test_huge_objects_and_enlarged_images(rows, cfg):
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (4000,), 8000
    huge, enlarged = sentences(rows, cfg)
    assert huge.startswith("20 of 20 objects are larger than 1024 pixels (twice the largest anchor)")
    assert "decrease INPUT.MIN_SIZE_TRAIN" in huge
    assert enlarged.startswith("Images are enlarged 40.0 times")


def test_objects_at_the_border_are_counted(rows, cfg):
    for number, box in ((0, [0, 20, 30, 40]), (1, [169.5, 20, 30, 40])):
        rows[number]["annotations"][0].update(annotation(box, 0))
    shares = [row["at_border"] * row["objects"] for row in check_data(rows, CLASSES, cfg)["classes"]]
    assert shares[0] == pytest.approx(2) and shares[1] == 0


def test_unreadable_image_file_is_named(rows, cfg):
    rows[3]["file_name"] = rows[3]["file_name"].replace("3.png", "gone.png")
    with pytest.raises(GNDetError, match=r"gone\.png does not exist"):
        check_data(rows, CLASSES, cfg)


def test_data_without_any_objects(rows, cfg):
    for row in rows:
        row["annotations"] = []
    check = check_data(rows, CLASSES, cfg)
    assert check["empty"] == 6 and check["objects"] == 0 and "0 objects" in format_check("name", check)
