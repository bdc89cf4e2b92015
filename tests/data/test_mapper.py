"""The mapper: detectron2's samples, and sentences that name the file at which reading fails."""

import copy

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng
from PIL import Image

from gn_det.config.files import load_config
from gn_det.data.mapper import Mapper
from gn_det.launch.tool import run_tool
from helpers.errors import error_sentence

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def cfg():
    return load_config(
        "quickstart_R18_FPN_gn_scratch", ["INPUT.MIN_SIZE_TRAIN", "(32, 64)", "INPUT.MIN_SIZE_TEST", "48"]
    )


@pytest.fixture
def row(tmp_path) -> dict:
    """An image with one object, in detectron2's format."""
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg")
    corners = [[5, 5, 25, 5, 25, 25, 5, 25]]
    thing = {"bbox": [5, 5, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "segmentation": corners}
    return {"file_name": str(tmp_path / "a.jpg"), "width": 60, "height": 40, "image_id": 1, "annotations": [thing]}


@pytest.mark.parametrize("is_train", [True, False])
def test_samples_are_those_of_detectron2(cfg, row, is_train):
    samples = []
    for mapper in (DatasetMapper, Mapper):
        seed_all_rng(1)
        samples.append(mapper(cfg, is_train=is_train)(row))
    stock, ours = samples
    assert stock.keys() == ours.keys() and torch.equal(stock["image"], ours["image"])
    if is_train:
        assert torch.equal(stock["instances"].gt_boxes.tensor, ours["instances"].gt_boxes.tensor)


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


DAMAGE = {
    "cut": (cut, "image file is truncated"),
    "EPS": (
        lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 40\n"),
        "unsupported format",
    ),
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
    "gone": (lambda path: path.unlink(), "No such file"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    "other size": (
        lambda path: Image.fromarray(PIXELS[:, :30]).save(path),
        "has 30 x 40 pixels, but its annotations say 60 x 40",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_file_that_breaks_after_the_check_is_named(damage, cfg, row, tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("Ghostscript was started"))
    change, problem = DAMAGE[damage]
    change(tmp_path / "a.jpg")
    sentence = error_sentence(Mapper(cfg, is_train=True), row)
    assert sentence.startswith(row["file_name"]) and problem in sentence


def test_other_exceptions_are_bugs_and_get_a_note(cfg, row):
    bad = copy.deepcopy(row)
    bad["annotations"][0]["segmentation"] = {"size": [40, 60], "counts": object()}
    with pytest.raises(Exception, match=".") as error:
        Mapper(cfg, is_train=True)(bad)
    assert error.value.__notes__ == [f"This happened with the image {row['file_name']}."]


@pytest.mark.parametrize("workers", [0, 1])
def test_commands_print_the_sentence_of_a_worker_process(workers, cfg, row, tmp_path, capsys):
    cut(tmp_path / "a.jpg")
    loader = build_detection_test_loader([row], mapper=Mapper(cfg, is_train=False), num_workers=workers)
    with pytest.raises(SystemExit) as end:
        run_tool(lambda: list(loader))
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    assert error.startswith(f"error: {row['file_name']} cannot be read as an image: image file is truncated")
