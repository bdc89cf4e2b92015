"""Detections of a file: each mistake is refused with its sentence, and all forms of masks are read."""

import json
import math

import numpy as np
import pytest
from pycocotools import mask as mask_util

from gn_det.data.coco import register_annotations
from gn_det.evaluation.detections import check_detections, read_detections
from gn_det.evaluation.evaluator import evaluate_detections
from helpers.errors import error_sentence

BOX, POLYGON = [10, 20, 40, 30], [10, 20, 50, 20, 50, 50, 10, 50]
IMAGES = {7: {"id": 7, "file_name": "val/7.png", "height": 100, "width": 80}, 8: {"file_name": "8.png"}}
IMAGES[8] |= {"id": 8, "height": 60, "width": 90}


def rle(compressed: bool = True) -> dict:
    (mask,) = mask_util.frPyObjects([POLYGON], 100, 80)
    if compressed:
        return {"size": [100, 80], "counts": mask["counts"].decode()}
    pixels = mask_util.decode(mask).T.reshape(-1)
    counts = np.diff(np.flatnonzero(np.diff(pixels, prepend=0)), prepend=0, append=pixels.size)
    return {"size": [100, 80], "counts": counts.tolist()}


def row(**changes) -> dict:
    """Return a detection with some keys replaced, or removed where the value is ``...``."""
    row = {"image_id": 7, "category_id": 1, "score": 0.5, "bbox": BOX, "segmentation": rle()} | changes
    return {key: value for key, value in row.items() if value is not ...}


@pytest.fixture
def write(tmp_path):
    def write(rows: object) -> str:
        path = tmp_path / "found.json"
        path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
        return str(path)

    return write


BAD = {
    "not JSON": ("{", "cannot be read"),
    "nested deeply": ("[" * 100_000, "cannot be read"),
    "no list": ({"annotations": []}, "is not in COCO's result format"),
    "no objects": ([1], "is not in COCO's result format"),
    "no score": ([row(score=...)], "is not in COCO's result format"),
    "no image": ([row(image_id=...)], "is not in COCO's result format"),
    "keypoints only": ([row(bbox=..., segmentation=..., keypoints=[1, 2, 2])], "has neither boxes ('bbox') nor masks"),
    "a row without box": ([row(), row(bbox=...)], "has 1 of 2 detections without 'bbox', which the others have"),
    "a row without mask": ([row(), row(segmentation=...)], "has 1 of 2 detections without 'segmentation'"),
    "NaN score": ([row(score=math.nan)], "score is not a finite number (1 of 1; the first is number 0"),
    "score as text": ([row(), row(score="0.5")], "score is not a finite number (1 of 2; the first is number 1"),
    "score missing": ([row(score=None)], "with score None)"),
    "box of 3": ([row(bbox=[1, 2, 3])], "bbox is not [x, y, width, height] of finite numbers"),
    "box of 5": ([row(bbox=[1, 2, 3, 4, 0.5])], "with bbox [1, 2, 3, 4, 0.5])"),
    "empty box": ([row(bbox=[])], "bbox is not [x, y, width, height]"),
    "box null": ([row(bbox=None)], "bbox is not [x, y, width, height]"),
    "infinite box": ([row(bbox=[1, 2, math.inf, 3])], "bbox is not [x, y, width, height]"),
    "negative width": ([row(bbox=[1, 2, -3, 3])], "bbox is not [x, y, width, height]"),
    "huge number": ([row(bbox=[1, 2, 3, 10**400])], "bbox is not [x, y, width, height]"),
    "mask null": ([row(segmentation=None)], "remove 'segmentation' from all detections to evaluate boxes"),
    "empty mask": ([row(segmentation=[])], "segmentation is not"),
    "mask as text": ([row(segmentation="PPYo1")], "segmentation is not"),
    "polygon of 2 points": ([row(segmentation=[[1, 2, 3, 4]])], "segmentation is not"),
    "polygon with a huge number": ([row(segmentation=[[1, 2, 3, 4, 5, 10**400]])], "segmentation is not"),
    "counts of text": ([row(segmentation={"size": [100, 80], "counts": ["8000"]})], "segmentation is not"),
    "negative count": ([row(segmentation={"size": [100, 80], "counts": [-1, 8001]})], "segmentation is not"),
    "image_id a list": ([row(image_id=[7])], "image_id is not an integer or text"),
    "image_id null": ([row(image_id=None)], "image_id is not an integer or text"),
    "image_id true": ([row(image_id=True)], "image_id is not an integer or text"),
    "category a list": ([row(category_id=[1])], "category_id is not an integer"),
    "category as text": ([row(category_id="1")], "category_id is not an integer (1 of 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_refused(write, case):
    rows, problem = BAD[case]
    path = write(rows)
    assert problem in error_sentence(read_detections, path)


def test_a_missing_file_is_refused(tmp_path):
    assert "cannot be read" in error_sentence(read_detections, tmp_path / "nowhere.json")


UNFIT = {
    "unknown image": (row(image_id=9), "image_id 9, which is not in the annotations; pass"),
    "id as text": (row(image_id="7"), "image_id '7', which is not in the annotations (they have the number 7); pass"),
    "unknown category": (row(category_id=4), "category_id 4, which is not in the annotations"),
    "mask of another image": (
        row(image_id=8),
        "mask does not have the size of its image (1 of 2; the first is number 1",
    ),
    "garbage": (row(segmentation={"size": [100, 80], "counts": "99"}), "run lengths do not make the pixels"),
    "bytes as text": (row(segmentation={"size": [100, 80], "counts": str(b"PPYo1")}), "run lengths do not make"),
    "counts too short": (row(segmentation={"size": [100, 80], "counts": [5, 6]}), "run lengths do not make"),
    "unknown file": (
        row(image_id=..., file_name="train/7.png"),
        "file_name 'train/7.png', which is not that of an image",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_rows_that_do_not_fit_the_annotations_are_refused(case):
    bad, problem = UNFIT[case]
    assert problem in error_sentence(check_detections, [row(), bad], IMAGES, {1: 0}, "found.json")


def test_an_id_that_the_annotations_have_as_text_is_named():
    sentence = error_sentence(check_detections, [row()], {"7": IMAGES[7]}, {1}, "found.json")
    assert "image_id 7, which is not in the annotations (they have the text '7'); pass" in sentence


def test_a_file_name_of_several_images_is_refused():
    images = {n: {**IMAGES[7], "file_name": "7.png"} for n in (1, 2)}
    sentence = error_sentence(check_detections, [row(image_id=..., file_name="x/7.png")], images, {1}, "found.json")
    assert "which is that of several images" in sentence


def test_valid_rows_are_kept(write):
    rows = [row(), row(image_id=7.0), row(bbox=[-5, 0, 0, 0])]
    assert check_detections(read_detections(write(rows)), IMAGES, {1}, "found.json") == rows
    assert read_detections(write([])) == []


def test_all_forms_of_masks_become_compressed_run_lengths(write):
    rows = [row(segmentation=mask) for mask in (rle(), rle(compressed=False), [POLYGON], [POLYGON, POLYGON])]
    checked = check_detections(read_detections(write(rows)), IMAGES, {1}, "found.json")
    assert [found["segmentation"] for found in checked] == [rle()] * 4
    assert rows[2]["segmentation"] == [POLYGON]  # the argument is unchanged


@pytest.mark.parametrize("name", ["val/7.png", "data/val/7.png", "/photos/val/7.png"])
def test_images_are_found_by_the_end_of_their_file_name(name):
    rows = [row(image_id=..., file_name=name), row()]
    assert [found["image_id"] for found in check_detections(rows, IMAGES, {1}, "found.json")] == [7, 7]


def test_ap_of_polygons_and_lists_of_run_lengths_is_100(tmp_path, write):
    """pycocotools reads neither in detections."""
    truth = {"images": list(IMAGES.values()), "categories": [{"id": 1, "name": "fig"}]}
    objects = [row(id=n, area=1200, score=...) | {"segmentation": [POLYGON]} for n in (1,)]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({**truth, "annotations": objects}))
    register_annotations("test_detections", path, tmp_path / "clean.json")
    for mask in ([POLYGON], rle(compressed=False)):
        results = evaluate_detections("test_detections", write([row(segmentation=mask)]))
        assert results["segm"]["AP"] == results["bbox"]["AP"] == pytest.approx(100)
