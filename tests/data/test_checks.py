"""Each finding on a data set that has it, and none on a sound one."""

import copy

import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image

from gn_det import GNDetError
from gn_det.config.files import load_config
from gn_det.data.checks import check_data, format_check

CLASSES = ["cat", "dog"]


def annotation(box, label: int = 0, **more) -> dict:
    x, y, w, h = box
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": label, "segmentation": [polygon]} | more


@pytest.fixture
def rows(tmp_path) -> list[dict]:
    """Six sound images of 200 x 100 pixels, ten objects of each class."""
    rows = []
    for number in range(6):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (200, 100)).save(path)
        objects = [annotation([10 + 40 * k, 20, 30, 40], (number + k) % 2) for k in range(4 if number < 4 else 2)]
        rows.append({"file_name": str(path), "width": 200, "height": 100, "annotations": objects})
    return rows


@pytest.fixture
def cfg():
    """Images of 100 pixels' short side stay as they are; anchors of 32 to 512."""
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


def test_facts_on_a_sound_data_set(rows, cfg):
    rows[0]["annotations"].append(annotation([0, 0, 50, 50], iscrowd=1))
    check = check_data(rows, CLASSES, cfg)
    assert check["findings"] == []
    assert (check["images"], check["empty"], check["objects"], check["crowds"]) == (6, 0, 20, 1)
    side = np.sqrt(30 * 40)
    cat = {"class": "cat", "objects": 10, "images": 6, "smallest": side, "median": side, "largest": side, "cut": 0.0}
    assert check["classes"][0] == pytest.approx(cat)
    assert "- nothing." in format_check("name", check)


def test_sides_are_of_the_scale_of_the_split(rows, cfg):
    train, test = (check_data(rows, CLASSES, cfg, train=train)["classes"][0]["median"] for train in (True, False))
    assert test == pytest.approx(2 * train)
    cfg.INPUT.MAX_SIZE_TRAIN = 100  # the long side of 200 becomes 100
    assert check_data(rows, CLASSES, cfg)["scales"].tolist() == [0.5] * 6
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    assert check_data(rows, CLASSES, cfg)["scales"].tolist() == [1.0] * 6


def change(rows: list[dict], kind: str) -> None:
    """Put one thing wrong, in the image 2.png (and in each for what is of all)."""
    row, objects = rows[2], rows[2]["annotations"]
    every = [a for r in rows for a in r["annotations"]]
    if kind == "missing":
        for a in every:
            a["category_id"] = 0
    elif kind == "few":
        objects[0]["category_id"] = 1 - objects[0]["category_id"]
    elif kind == "empty":
        row["annotations"] = []
    elif kind == "corners":
        x, y, w, h = objects[3]["bbox"]
        objects[3]["bbox"] = [x, y, x + w, y + h]
    elif kind == "relative":
        for a in every:
            a["bbox"], a["segmentation"] = [v / 200 for v in a["bbox"]], None
    elif kind == "double":
        objects.append(copy.deepcopy(objects[0]))
    elif kind == "tiny":
        objects[0].update(annotation([10, 20, 12, 12], objects[0]["category_id"]))
    elif kind == "turned":
        with Image.open(row["file_name"]) as image:
            exif = image.getexif()
            exif[0x0112] = 3
            image.save(row["file_name"], exif=exif)
    elif kind == "deep":
        Image.fromarray(np.zeros((100, 200), dtype=np.uint16)).save(row["file_name"])


FOUND = {
    "missing": "Classes without an object, 1 of 2: dog.",
    "few": "Classes with fewer than 10 objects: ",
    "empty": "Images without an object, 1 of 6, left out of training by DATALOADER.FILTER_EMPTY_ANNOTATIONS: 2.png.",
    "corners": "Boxes that reach out of their image, and are cut there, 1 of 20: 2.png.",
    "relative": "are they given as shares of the image",
    "double": "Objects with nearly the box of another one of their class, 1 of 21: 2.png.",
    "tiny": "Objects below 16 pixels a side, half of the smallest anchor, when the model gets them, 1 of 20",
    "turned": "Images that detectron2 turns, as their EXIF data say, 1: 2.png.",
    "deep": "Images of more than 8 bits a channel, 1: 2.png.",
}


@pytest.mark.parametrize("kind", FOUND)
def test_what_looks_wrong_is_said(rows, cfg, kind):
    change(rows, kind)
    found = check_data(rows, CLASSES, cfg)["findings"]
    (finding,) = [finding for finding in found if FOUND[kind] in finding.sentence]
    assert len(found) == {"corners": 2, "relative": 2, "empty": 2}.get(
        kind, 1
    )  # with few objects, other masks, all tiny
    if finding.words:
        assert finding.images == ((2,) if kind != "relative" else tuple(range(6)))


def test_a_box_in_corners_is_unlike_its_mask(rows, cfg):
    change(rows, "corners")
    assert any(
        "not around their mask (is it [x, y, width, height]?), 1 of 20: 2.png" in s for s in sentences(rows, cfg)
    )


def test_run_length_masks_are_compared_with_their_boxes(rows, cfg):
    from pycocotools import mask

    pixels = np.zeros((100, 200), dtype=np.uint8, order="F")
    pixels[20:60, 10:40] = 1
    rows[0]["annotations"][0]["segmentation"] = mask.encode(pixels)
    assert sentences(rows, cfg) == []
    rows[1]["annotations"][1]["segmentation"] = mask.encode(pixels)  # another object's
    assert "1 of 20: 1.png" in sentences(rows, cfg)[0]


def test_doubles_are_of_one_class_and_image(rows, cfg):
    rows[2]["annotations"].append(
        annotation(rows[2]["annotations"][0]["bbox"], 1 - rows[2]["annotations"][0]["category_id"])
    )
    assert sentences(rows, cfg) == []  # every image has objects in the same place, and here one of each class has


def test_huge_and_enlarged(rows, cfg):
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (4000,), 8000
    huge, enlarged = sentences(rows, cfg)
    assert huge.startswith("Objects above 1024 pixels a side, twice the largest anchor") and "be smaller" in huge
    assert enlarged.startswith("Images are enlarged 40.0 times")


def test_objects_at_the_border_are_counted(rows, cfg):
    for number, box in ((0, [0, 20, 30, 40]), (1, [169.5, 20, 30, 40])):
        rows[number]["annotations"][0].update(annotation(box, 0))
    shares = [row["cut"] * row["objects"] for row in check_data(rows, CLASSES, cfg)["classes"]]
    assert shares[0] == pytest.approx(2) and shares[1] == 0


def test_a_file_that_is_no_image_is_named(rows, cfg):
    rows[3]["file_name"] = rows[3]["file_name"].replace("3.png", "gone.png")
    with pytest.raises(GNDetError, match=r"gone\.png cannot be read as an image \(FileNotFoundError\)"):
        check_data(rows, CLASSES, cfg)


def test_without_any_object(rows, cfg):
    for row in rows:
        row["annotations"] = []
    check = check_data(rows, CLASSES, cfg)
    assert check["empty"] == 6 and check["objects"] == 0 and "0 objects" in format_check("name", check)
