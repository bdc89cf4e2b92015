"""The pictures of a report: which cases are shown, their captions, and which files are read."""

import re
import shutil

import pytest

from gn_det.data.coco import read_annotations
from gn_det.report import write_report
from gn_det.report.analysis import analyze_detections
from gn_det.report.cases import choose_cases
from helpers.reports import NAME, fruit, jittered, make_run, square


def test_cases_and_captions():
    truth, rows = fruit()
    rows += [square(100, 130, category=5, score=0.95, image=0), square(0, 30, category=9, score=0.94, image=0)]
    assert {row["image_id"] for row in rows} == {0, 5}
    analysis = analyze_detections(truth, rows, 0.5)
    cases = choose_cases(analysis, truth, rows, number=9)
    captions = {case.caption for case in cases["false positives"]}
    assert captions == {
        "pear, score 0.95: inaccurate, IoU 0.14 with the nearest box",
        "pear, score 0.60: no object there",
    }
    (miss,) = cases["misses"]
    assert miss.caption == "pear, 40 px: detected as fig (score 0.70)" and miss.image == 0
    assert [case.caption for case in cases["best"]] == ["1 of 2 objects found, 4 false positives"]
    assert [case.caption for case in cases["worst"]] == ["0 of 0 objects found, 1 false positive"]


@pytest.mark.parametrize(
    ("detection", "false_positive", "miss"),
    [
        (square(0, 2, score=0.8), "another detection already found this object", None),
        (square(100, 100, score=0.8), "the ground truth is pear", "detected as fig (score 0.80)"),
        (square(100, 20, score=0.4), None, "pear, 40 px: no detection there"),
        (square(100, 100, category=5, score=0.3), None, "detected, but with score 0.30 only"),
        (square(100, 125, category=5, score=0.8), "inaccurate, IoU 0.23", "the best detection has IoU 0.23 only"),
        (
            square(115, 115, category=9, score=0.8),
            "inaccurate, and the nearest object is of another class",
            "no detection there",
        ),
    ],
)
def test_each_reason(detection, false_positive, miss):
    truth, rows = fruit()
    rows = [rows[0], detection]
    cases = choose_cases(analyze_detections(truth, rows, 0.5), truth, rows)
    reasons = [case.caption.split(": ")[1] for case in cases["false positives"]]
    assert len(reasons) == (false_positive is not None)
    assert all(reason.startswith(false_positive) for reason in reasons)
    if miss:
        assert cases["misses"][0].caption.endswith(miss)


def test_unreadable_images_are_counted_and_without_images_there_are_no_pictures(data, tmp_path):
    moved = tmp_path / "data"
    shutil.copytree(data, moved)
    folder = make_run(tmp_path / "out", moved, jittered(read_annotations(data / "val.json")), images=True)
    (moved / "val" / "000001.png").write_text("not an image")
    (moved / "val" / "000002.png").unlink()
    page = write_report(folder).read_text()
    assert re.search(r"\d images could not be read and are not shown", page) and "<img" in page
    shutil.rmtree(moved / "val")
    page = write_report(folder).read_text()
    assert f"The images of {NAME} were not found, so no pictures are shown." in page and "<img" not in page
    assert "Confusion" in page


def test_no_pictures_come_from_outside_the_image_folder(data, tmp_path):
    moved = tmp_path / "data"
    shutil.copytree(data, moved)
    folder = make_run(tmp_path / "out", moved, jittered(read_annotations(data / "val.json")), images=True)
    (moved / "val").rename(moved / "elsewhere")
    (moved / "val").mkdir()
    path = folder / "data" / f"{NAME}.json"
    path.write_text(path.read_text().replace('"file_name": "', '"file_name": "../elsewhere/'))
    assert "<img" not in write_report(folder).read_text()


def test_missing_opencv_is_reported(data, tmp_path, monkeypatch):
    folder = make_run(tmp_path / "out", data, jittered(read_annotations(data / "val.json")), images=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "OpenCV is not installed" in write_report(folder).read_text()
