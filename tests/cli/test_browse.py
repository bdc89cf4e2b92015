"""``gn-det browse``: which images are drawn, what is drawn on them, and that nothing else is written."""

import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gn_det.data import shapes
from gn_det.data.checks import Finding
from gn_det.drawing.instances import contact_sheet

pytest.importorskip("cv2", reason="detectron2's Visualizer needs OpenCV")
from gn_det.cli.browse import choose_images

SMALL = "quickstart_R18_FPN_gn_scratch"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "shapes"
    shapes.generate(root, num_train=5, num_val=3, seed=1, size=96)
    return root


@pytest.fixture
def tool(run_cli, monkeypatch, tmp_path):
    """A function that runs the tool in an empty folder: (arguments) -> exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    return functools.partial(run_cli, "browse_data.py")


def train(data: Path) -> list:
    return ["--config", SMALL, "--train-json", data / "train.json", "--train-images", data / "train"]


def val(data: Path) -> list:
    return ["--val-json", data / "val.json", "--val-images", data / "val"]


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_samples_are_drawn_and_nothing_else_is_written(tool, data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last_checkpoint").write_text("model_final.pth")  # an existing run
    code, out, error = tool(*train(data), "--number", 3, "--out", "pictures", "OUTPUT_DIR", "run")
    assert (code, error) == (0, "") and "pictures/sheet.jpg shows 3 of 5 images" in out
    assert "own_shapes_train: 5 images of 96 x 96 pixels" in out and "| circle " in out
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert written == [f"pictures/{name}.jpg" for name in ("01", "02", "03", "sheet")] + ["run/last_checkpoint"]


def test_seed_selects_the_images(tool, data):
    for name, opts in {"a": ["SEED", 3], "b": ["SEED", 3], "c": ["SEED", 4]}.items():
        assert tool(*train(data), "--number", 4, "--out", name, *opts)[0] == 0
    a, b, c = (Path(name, "sheet.jpg").read_bytes() for name in "abc")
    assert a == b and a != c


def test_pictures_show_the_input_of_the_model(tool, data):
    """Images are resized and flipped as in training; without augmentation, they are drawn as in the file."""
    size = ["INPUT.MIN_SIZE_TRAIN", "(200,)", "INPUT.MIN_SIZE_TEST", "150"]
    options = {"flip": ["INPUT.RANDOM_FLIP", "horizontal"], "none": ["INPUT.RANDOM_FLIP", "none"]}
    for name, opts in options.items():
        assert "scaled by 2.08" in tool(*train(data), "--number", 5, "--out", name, *size, *opts)[1]
    tool(*train(data), "--number", 5, "--no-augmentation", "--out", "file", *size)
    mirrored = []
    for number in range(1, 6):
        flipped, not_flipped, as_file = (
            picture(Path(f"{name}/{number:02d}.jpg"))[60:] for name in ("flip", "none", "file")
        )
        assert flipped.shape == not_flipped.shape
        size = min(len(not_flipped), len(as_file))
        assert np.abs(not_flipped[:size] - as_file[:size]).mean() < 30
        mirrored.append(np.abs(flipped - not_flipped).mean() > 20)
    assert 0 < sum(mirrored) < 5  # each image is flipped with a probability of 0.5


def test_test_split_is_scaled_as_in_testing_and_has_ground_truth(tool, data):
    sizes = ["INPUT.MIN_SIZE_TEST", "288", "INPUT.MIN_SIZE_TRAIN", "(96,)"]
    code, out, _ = tool("--config", SMALL, *val(data), "--no-augmentation", *sizes)
    assert code == 0 and "own_shapes_val: 3 images" in out and "scaled by 3.00" in out and "objects" in out
    assert Path("browse/own_shapes_val/03.jpg").is_file()
    sizes = ["--out", "both", "INPUT.MIN_SIZE_TEST", "600", "INPUT.MIN_SIZE_TRAIN", "(500,)"]
    code, out, _ = tool(*train(data), *val(data), "--split", "test", *sizes)
    assert code == 0 and "own_shapes_val" in out and picture(Path("both/01.jpg")).shape[1] == 600
    code, out, _ = tool(*train(data), *val(data), *sizes)
    assert code == 0 and "own_shapes_train" in out and picture(Path("both/01.jpg")).shape[1] == 500


def test_boxes_masks_and_names_are_drawn(tool, data, tmp_path):
    """The image has a single color, so that every other pixel is drawn."""
    Image.new("RGB", (96, 96), (128, 128, 128)).save(tmp_path / "gray.png")
    image = {"id": 1, "file_name": "gray.png", "width": 96, "height": 96}
    polygon = [20, 20, 60, 20, 60, 60, 20, 60]
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 20, 40, 40], "segmentation": [polygon]}
    categories = [{"id": 1, "name": "thing"}]
    (tmp_path / "a.json").write_text(json.dumps({"images": [image], "annotations": [row], "categories": categories}))
    options = ["INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.RANDOM_FLIP", "none", "--out", "drawn"]
    flags = ["--train-json", tmp_path / "a.json", "--train-images", tmp_path, "--out", "drawn"]
    assert tool("--config", SMALL, *flags, *options[:4])[0] == 0
    drawn = picture(Path("drawn/01.jpg"))[42:]
    inside, outside = drawn[240:260, 240:260], drawn[400:, 400:]
    assert np.abs(outside - 128).max() < 12 and np.abs(inside - 128).max() > 40
    assert tool("--config", SMALL, *flags, *options[:4], "MODEL.MASK_ON", False)[0] == 0
    assert np.abs(picture(Path("drawn/01.jpg"))[42:][240:260, 240:260] - 128).max() < 12


def test_images_with_findings_come_first():
    findings = [Finding("", "a", (7, 8, 9)), Finding("", "", (1,)), Finding("", "b", (3,))]
    chosen = choose_images([{}] * 20, {"findings": findings}, 6, seed=0)
    assert len(chosen) == 6 and {7: "a", 3: "b", 8: "a"}.items() <= dict(chosen).items()
    assert chosen == sorted(chosen) == choose_images([{}] * 20, {"findings": findings}, 6, seed=0)
    assert len(choose_images([{}] * 4, {"findings": []}, 6, seed=0)) == 4


def test_contact_sheet_fits_images_of_any_size():
    images = [np.full((h, w, 3), 200, dtype=np.uint8) for h, w in ((50, 100), (100, 50), (1, 300))]
    sheet = contact_sheet(images, ["a\nb"] * 3, columns=2, width=100)
    assert sheet.size == (208, 42 + 100 + 8 + 42 + 1)
    assert sheet.getpixel((50, 42 + 25)) == sheet.getpixel((108 + 25, 42 + 50)) == (200, 200, 200)
    assert sheet.getpixel((50, 42 + 75)) == (255, 255, 255)


USER_ERRORS = {
    "--number 0": "--number is 0; the number of images to draw must be at least 1.",
    "--split test": "--split test with --train-json also needs --val-json",
    "MODEL.ROI_HEADS.NUM_CLASSES 7": "has 3 classes: set it to 3",
    "INPUT.MIN_SIZE 3": "there is no config key INPUT.MIN_SIZE",
    "--out /proc/nothing": "--out /proc/nothing cannot be written to",
}


@pytest.mark.parametrize("arguments", USER_ERRORS)
def test_user_errors_are_one_sentence(tool, data, arguments):
    code, _, error = tool(*train(data), *arguments.split())
    assert code == 2 and USER_ERRORS[arguments] in error and error.count("\n") == 1


def test_missing_opencv_is_reported(tool, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.delitem(sys.modules, "gn_det.drawing.instances", raising=False)
    for name in [name for name in sys.modules if name.endswith("detectron2.utils.visualizer")]:
        monkeypatch.delitem(sys.modules, name)
    code, _, error = tool(*train(data))
    assert code == 2 and "pip install opencv-python-headless" in error
