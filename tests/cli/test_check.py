"""``gn-det check``: all problems are printed, and ``--fix`` writes a copy that training accepts."""

import functools
import json
from pathlib import Path

import pytest

from gn_det.data import shapes
from gn_det.data.coco import read_annotations


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with train.json and its images in train."""
    monkeypatch.chdir(tmp_path)
    shapes.generate(tmp_path / "shapes", num_train=3, num_val=1, seed=1, size=64)
    return tmp_path / "shapes"


@pytest.fixture
def tool(run_cli, folder):
    return functools.partial(run_cli, "check_data.py")


def write(folder: Path, **fields) -> Path:
    """Write train.json with other fields in its first annotation, and return its path."""
    path = folder / "train.json"
    data = json.loads(path.read_text())
    data["annotations"][0] |= fields
    path.write_text(json.dumps(data))
    return path


def test_good_annotations(tool, folder):
    code, out, _ = tool(folder / "train.json", "--images", folder / "train")
    assert code == 0 and out.startswith(f"{folder}/train.json: no problems.")
    assert "3 images" in out and "0 crowd regions, 3 classes" in out


def test_problems_are_printed_with_their_types_and_fixed(tool, folder):
    path = write(folder, image_id="1", bbox=[1, 1, 0, 5], iscrowd=None)
    code, out, _ = tool(path, "--images", folder / "train")
    assert code == 1
    assert out.index("Refused; --fix repairs it:") < out.index("Repaired whenever the file is read:")
    assert 'annotation 1 has image_id "1", and the image has id 1' in " ".join(out.split())
    before = path.read_text()
    code, out, _ = tool(path, "--images", folder / "train", "--fix", folder / "new.json")
    assert (
        code == 0
        and "The bbox is computed from the mask." in " ".join(out.split())
        and "Wrote the repaired copy" in out
    )
    assert path.read_text() == before
    code, out, _ = tool(folder / "new.json", "--images", folder / "train")
    assert code == 0 and "no problems" in out


def test_what_fix_cannot_repair_is_named_and_nothing_is_written(tool, folder):
    path = write(folder)
    (folder / "train" / "000002.png").unlink()
    code, _, error = tool(path, "--images", folder / "train", "--fix", folder / "new.json")
    assert code == 2 and "000002.png does not exist; correct them by hand." in error and error.count("\n") == 1
    assert not (folder / "new.json").exists()


def test_input_is_never_replaced(tool, folder):
    code, _, error = tool(folder / "train.json", "--fix", folder / "." / "train.json")
    assert code == 2 and "write the copy to another file" in error


def test_boxes_only(tool, folder):
    path = write(folder, segmentation=[])
    assert tool(path)[0] == 1
    code, out, _ = tool(path, "--no-masks")
    assert code == 0 and "Image files were not checked" in out


def test_copy_of_a_copy_is_the_same(tool, folder):
    tool(folder / "train.json", "--fix", folder / "a.json")
    tool(folder / "a.json", "--fix", folder / "b.json")
    assert read_annotations(folder / "a.json") == read_annotations(folder / "b.json")


def test_page(tool, folder):
    pytest.importorskip("cv2", reason="detectron2's Visualizer needs OpenCV")
    code, out, _ = tool(folder / "train.json", "--images", folder / "train", "--page", "page.html")
    assert code == 0 and "Wrote the page page.html." in out and "<h2>Samples</h2>" in Path("page.html").read_text()
    assert "pass the image folder" in tool(folder / "train.json", "--page", "page.html")[2]
