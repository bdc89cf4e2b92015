"""The page about annotations: problems, classes, sizes and samples."""

import json
import re
from pathlib import Path

import pytest

from gn_det.config.files import load_config
from gn_det.data import shapes
from gn_det.data.cleaning import Options
from gn_det.data.coco import check_annotations
from gn_det.report.data_page import write_data_page

pytest.importorskip("cv2", reason="detectron2's Visualizer needs OpenCV")


@pytest.fixture
def page(tmp_path):
    """A function that writes the page of annotations after a change, and returns its text."""
    root = tmp_path / "shapes"
    shapes.generate(root, num_train=4, num_val=1, seed=1, size=64)

    def write(change) -> str:
        data = json.loads((root / "train.json").read_text())
        change(data, root / "train")
        problems = check_annotations(data, Options(root / "train"))
        cfg = load_config("quickstart_R18_FPN_gn_scratch")
        return write_data_page(tmp_path / "page.html", "train.json", data, root / "train", problems, cfg).read_text()

    return write


def test_page_shows_problems_classes_sizes_and_samples(page):
    def change(data: dict, _: Path) -> None:
        data["annotations"][0]["iscrowd"] = "0"
        data["categories"][0]["name"] = "<b>circle</b>"

    text = page(change)
    assert "annotation: iscrowd of another type" in text and "iscrowd &#34;0&#34;" in text
    assert "&lt;b&gt;circle&lt;/b&gt;" in text and "<b>circle</b>" not in text
    assert text.count("data:image/jpeg;base64,") == 4 and "Object sizes and anchors" in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)


def test_images_that_do_not_exist_are_left_out(page):
    text = page(lambda data, folder: (folder / "000002.png").unlink())
    assert "000002.png does not exist" in text and text.count("data:image/jpeg;base64,") == 3


def test_no_objects(page):
    text = page(lambda data, _: data.update(annotations=[]))
    assert "The dataset has no objects." in text
