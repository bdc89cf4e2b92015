"""The rules by which annotations of other programs are checked and repaired."""

import copy
import json
import unicodedata

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from gn_det.data.annotation_rules import ANNOTATION_RULES
from gn_det.data.category_rules import CATEGORY_RULES, NAME_RULES
from gn_det.data.cleaning import Options
from gn_det.data.coco import check_annotations
from gn_det.data.image_rules import IMAGE_RULES
from gn_det.data.rules import Action

POLYGON = [[2, 3, 12, 3, 12, 13, 2, 13]]
OBJECT = {"id": 4, "image_id": 1, "category_id": 7, "bbox": [2, 3, 10, 10], "segmentation": POLYGON}
OTHER = {"id": 5, "image_id": 2, "category_id": 9, "bbox": [20, 5, 10, 20], "iscrowd": 0, "area": 200}
OTHER["segmentation"] = [[20, 5, 30, 5, 30, 25, 20, 25]]
GOOD = {
    "images": [{"id": n, "file_name": f"{n}.png", "height": 32, "width": 48} for n in (1, 2)],
    "annotations": [OBJECT, OTHER],
    "categories": [{"id": 7, "name": "fig"}, {"id": 9, "name": "pear"}],
}
PIXELS = np.zeros((32, 48), dtype=np.uint8)
PIXELS[3:13, 2:12] = 1
RLE = coco_mask.encode(np.asfortranarray(PIXELS))
RUNS = [2 * 32 + 3, *([10, 22] * 9), 10, 32 * 48 - 12 * 32 + 19]


def changed(kind: str, **fields) -> dict:
    """Return GOOD with other fields in the first row of a kind; ``...`` removes a field."""
    data = copy.deepcopy(GOOD)
    row = data[kind][0] | fields
    data[kind][0] = {key: value for key, value in row.items() if value is not ...}
    return data


def check(data: dict, **options):
    """Return the clean copy, and {name: problem}, as they are after the file was written and read."""
    data = json.loads(json.dumps(data))
    problems = check_annotations(data, Options(**options))
    return data, {problem.name: problem for problem in problems.values()}


def mask_pixels(row: dict) -> np.ndarray:
    mask = row["segmentation"]
    if isinstance(mask, list):
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(mask, 32, 48)))
    return coco_mask.decode(coco_mask.frPyObjects(mask, 32, 48) if isinstance(mask["counts"], list) else mask)


def test_good_annotations_have_no_problems():
    data, problems = check(GOOD)
    assert not problems and data["annotations"][0] == OBJECT | {"id": 1, "iscrowd": 0, "area": 100}
    assert data["annotations"][1] == OTHER | {"id": 2}


READ = {
    "image: numbers of another type": (
        changed("images", height="32", width=48.0),
        "images",
        {"height": 32, "width": 48},
    ),
    "image: listed twice": (GOOD | {"images": [GOOD["images"][0], *GOOD["images"]]}, "images", {"id": 1}),
    "image: ids of several types": (changed("images", id="1"), "images", {"id": 1}),
    "category: values of another type": (changed("categories", id="7", name=3), "categories", {"id": 7, "name": "3"}),
    "category: listed twice": (GOOD | {"categories": GOOD["categories"] * 3}, "categories", {"id": 7}),
    "annotation: image_id of another type": (changed("annotations", image_id="1"), "annotations", {"image_id": 1}),
    "annotation: category_id of another type": (
        changed("annotations", category_id=7.0),
        "annotations",
        {"category_id": 7},
    ),
    "annotation: iscrowd of another type": (changed("annotations", iscrowd="0"), "annotations", {"iscrowd": 0}),
    "annotation: to be ignored": (changed("annotations", ignore=1), "annotations", {"iscrowd": 1}),
    "annotation: bbox of another type": (
        changed("annotations", bbox=["2", "3.0", "1e1", 10]),
        "annotations",
        {"bbox": [2, 3, 10, 10]},
    ),
    "annotation: bbox of width or height 0": (
        changed("annotations", bbox=[2, 3, 10, 0], segmentation=[[2, 3, 2, 3, 12, 3, 12, 3]]),
        "annotations",
        {"bbox": OTHER["bbox"]},
    ),
    "annotation: mask in another form": (
        changed("annotations", segmentation=POLYGON[0]),
        "annotations",
        {"segmentation": POLYGON},
    ),
    "annotation: unusable area": (changed("annotations", area=None), "annotations", {"area": 100.0}),
    "no annotations": (GOOD | {"annotations": None}, "images", {"id": 1}),
}


@pytest.mark.parametrize("name", READ)
def test_what_has_one_meaning_is_repaired_when_it_is_read(name):
    data, kind, expected = READ[name]
    data, problems = check(data)
    assert list(problems) == [name] and problems[name].action is Action.READ
    row = data[kind][0]
    assert {key: row[key] for key in expected} == expected
    assert all(type(row[key]) is type(value) for key, value in expected.items())
    assert len(data["images"]) == 2 and len(data["categories"]) == 2
    assert check(data)[1] == {}  # what is read again is the same


FIX = {
    "category: same name, unused": (
        GOOD | {"categories": [{"id": 0, "name": "fig"}, *GOOD["categories"]]},
        "categories",
        {"id": 7, "name": "fig"},
    ),
    "category: same name": (changed("categories", name="pear"), "annotations", {"category_id": 7}),
    "annotation: unknown image_id": (changed("annotations", image_id=3), "annotations", {"image_id": 2}),
    "annotation: unknown category_id": (changed("annotations", category_id=None), "annotations", {"image_id": 2}),
    "annotation: unknown iscrowd": (changed("annotations", iscrowd=2), "annotations", {"iscrowd": 0}),
    "annotation: mask that cannot be read": (
        changed("annotations", segmentation="mask.png"),
        "annotations",
        {"segmentation": POLYGON},
    ),
    "annotation: run lengths of another kind": (
        changed("annotations", segmentation={"size": [48, 32], "counts": RUNS}),
        "annotations",
        {"image_id": 1},
    ),
    "annotation: faulty polygons among others": (
        changed("annotations", segmentation=[*POLYGON, [1, 2, 3]]),
        "annotations",
        {"segmentation": POLYGON},
    ),
    "annotation: bbox that the mask can give": (
        changed("annotations", bbox=[0, 0, 0, 10]),
        "annotations",
        {"bbox": [2, 3, 10, 10]},
    ),
    "annotation: no bbox": (
        changed("annotations", bbox=[9, 9, -3, 4], segmentation=...),
        "annotations",
        {"image_id": 2},
    ),
    "annotation: bbox outside its image": (changed("annotations", bbox=[48, 0, 5, 5]), "annotations", {"image_id": 2}),
    "annotation: no mask": (changed("annotations", segmentation=[[]]), "annotations", {"bbox": [2, 3, 10, 10]}),
}


@pytest.mark.parametrize("name", FIX)
def test_what_is_a_decision_is_refused_and_repaired_by_fix(name):
    data, kind, expected = FIX[name]
    data, problems = check(data, fix=True)
    assert problems[name].is_refused and problems[name].action is Action.FIX
    assert expected.items() <= data[kind][0].items()
    assert not any(problem.is_refused for problem in check(data)[1].values())


NOTE = {
    "annotation: duplicate": (GOOD | {"annotations": [OBJECT, OBJECT | {"id": 8}, OTHER]}, "annotations", 2),
    "annotation: bbox beyond its image": (changed("annotations", bbox=[-5, 3, 10, 10]), "annotations", 2),
    "category: unused root": (
        GOOD | {"categories": [{"id": 0, "name": "x"}, *(row | {"supercategory": "x"} for row in GOOD["categories"])]},
        "categories",
        2,
    ),
    "all are crowd regions": (GOOD | {"annotations": [OBJECT | {"iscrowd": 1}]}, "annotations", 1),
}


@pytest.mark.parametrize("name", NOTE)
def test_what_may_be_intended_is_accepted_and_repaired_by_fix(name):
    original, kind, number = NOTE[name]
    data, problems = check(original)
    assert problems[name].action is Action.NOTE and len(data[kind]) == len(original[kind])
    data, problems = check(original, fix=True)
    assert len(data[kind]) == number and check(data)[1] == {}


HAND = {
    "no images": GOOD | {"images": [], "annotations": []},
    "no categories": GOOD | {"categories": [], "annotations": []},
    "image: no id": changed("images", id=1.5),
    "image: same id": GOOD | {"images": [*GOOD["images"], GOOD["images"][0] | {"file_name": "c.png"}]},
    "image: no file name": changed("images", file_name=None),
    "image: file name outside": changed("images", file_name="../1.png"),
    "image: no size": changed("images", width=-1),
    "category: no id or name": changed("categories", name=...),
    "category: same id": changed("categories", id=9),
}


@pytest.mark.parametrize("name", HAND)
def test_what_only_the_user_knows_is_refused_also_by_fix(name):
    _, problems = check(HAND[name], fix=True)
    assert problems[name].action is Action.HAND


def test_every_rule_has_a_test():
    tested = {*READ, *FIX, *NOTE, *HAND}
    files = {"image: file name of another system", "image: path of another folder"}  # below
    rules = (*IMAGE_RULES, *CATEGORY_RULES, *NAME_RULES, *ANNOTATION_RULES)
    assert {rule.name for rule in rules} == {name for name in tested | files if ":" in name} - {
        "image: ids of several types"
    }


def test_annotations_of_an_image_with_a_problem_are_no_problem_of_their_own():
    assert list(check(changed("images", width=None))[1]) == ["image: no size"]
    assert list(check(changed("categories", name=None))[1]) == ["category: no id or name"]


@pytest.mark.parametrize("flag", [None, False, 0.0, "0", "false"])
def test_flags_that_mean_no(flag):
    data, _ = check(changed("annotations", iscrowd=flag))
    assert data["annotations"][0]["iscrowd"] == 0 and type(data["annotations"][0]["iscrowd"]) is int


@pytest.mark.parametrize("area", [None, float("nan"), "x", -5, 0, 0.04])
def test_area_comes_from_the_mask(area):
    triangle = changed("annotations", area=area, segmentation=[[2, 3, 12, 3, 2, 13]])
    assert check(triangle)[0]["annotations"][0]["area"] == 50


def test_images_keep_ids_that_are_text():
    data = changed("images", id="a")
    data["annotations"][0]["image_id"] = "a"
    data, problems = check(data)
    assert [row["id"] for row in data["images"]] == ["a", "2"]
    assert [row["image_id"] for row in data["annotations"]] == ["a", "2"]


FORMS = {
    "points": [[[2, 3], [12, 3], [12, 13], [2, 13]]],
    "text": [["2", "3", "12", "3", "12", "13", "2", "13"]],
    "flat list": POLYGON[0],
    "runs": {"size": [32, 48], "counts": RUNS},
    "runs as floats": {"size": [32.0, 48.0], "counts": [float(run) for run in RUNS]},
    "size as text": {"size": ["32", "48"], "counts": RUNS},
    "compressed": {"size": [32, 48], "counts": RLE["counts"].decode()},
    "text of bytes": {"size": [32, 48], "counts": str(RLE["counts"])},
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_masks_have_the_same_pixels(name):
    data, problems = check(changed("annotations", segmentation=FORMS[name]))
    assert not any(problem.is_refused for problem in problems.values())
    np.testing.assert_array_equal(mask_pixels(data["annotations"][0]), PIXELS)


STARTS = [(column * 32 + 3, 10) for column in range(2, 12)]
WRONG = {
    "pairs from 0": {"size": [32, 48], "counts": [value for pair in STARTS for value in pair]},
    "pairs from 1": {"size": [32, 48], "counts": [[start + 1, length] for start, length in STARTS]},
    "pairs along rows": {"size": [32, 48], "counts": [v for row in range(3, 13) for v in (row * 48 + 2, 10)]},
    "size in the other order": {"size": [48, 32], "counts": RUNS},
    "no size": {"counts": RUNS},
    "too long": {"size": [32, 48], "counts": [*RUNS[:-1], 9999]},
    "too short": {"size": [32, 48], "counts": RUNS[:-1]},
    "rows first": coco_mask.encode(np.asfortranarray(PIXELS.T)),
}
WRONG["rows first"]["counts"] = WRONG["rows first"]["counts"].decode()


@pytest.mark.parametrize("name", WRONG)
def test_run_lengths_are_read_in_the_way_that_fits_the_box(name):
    data, problems = check(changed("annotations", segmentation=WRONG[name]), fix=True)
    assert [problem.action for problem in problems.values() if problem.is_refused] == [Action.FIX]
    assert isinstance(data["annotations"][0]["segmentation"], dict)
    np.testing.assert_array_equal(mask_pixels(data["annotations"][0]), PIXELS)


@pytest.mark.parametrize(
    "mask",
    [
        {"size": [32, 48], "counts": [5, -3, 32 * 48 - 2]},
        {"size": [32, 48], "counts": "~~~"},
        {"size": [32, 48], "counts": RLE["counts"].decode()[:9]},
        {"size": [32, 48], "counts": []},
        {"size": [32, 48], "counts": [32 * 48]},
        {"size": [32, 48]},
        [[2, 3, 12, 3]],
        [[2, 3, 7, 3, 12, 3]],
        [[2, 3, 12, 3, 12, float("nan")]],
        "mask.png",
        True,
    ],
)
def test_masks_that_nothing_can_read_become_the_box(mask):
    data, problems = check(changed("annotations", segmentation=mask), fix=True)
    assert problems["annotation: mask that cannot be read"].action is Action.FIX
    assert data["annotations"][0]["segmentation"] == POLYGON


@pytest.fixture
def folder(tmp_path):
    """An image folder with the files of GOOD."""
    for name in ("1.png", "2.png"):
        Image.new("RGB", (48, 32)).save(tmp_path / name)
    return tmp_path


def test_names_of_other_systems_are_found(folder):
    (folder / "Grüße").mkdir()
    Image.new("RGB", (48, 32)).save(folder / "Grüße" / "a.JPG")
    name = unicodedata.normalize("NFD", "Grüße\\a.jpg")
    data, problems = check(changed("images", file_name=name), image_root=folder)
    assert data["images"][0]["file_name"] == "Grüße/a.JPG"
    assert [problem.action for problem in problems.values()] == [Action.READ]


@pytest.mark.parametrize(
    "name",
    [
        "C:\\data\\images\\1.png",
        "/mnt/images/1.png",
        "..\\..\\label-studio\\media\\upload\\4\\1.png",
        "/data/local-files/?d=images/1.png",
        "http://localhost:8080/upload/1.png",
        "images/1.png",
    ],
)
def test_paths_of_another_machine_are_found_by_their_end(folder, name):
    data, problems = check(changed("images", file_name=name), image_root=folder)
    assert data["images"][0]["file_name"] == "1.png"
    (problem,) = problems.values()
    assert problem.action is Action.FIX and f"but {folder}/1.png exists" in problem.sentence()


def test_two_files_whose_names_differ_in_case_only_are_not_confused(folder):
    for name in ("a.png", "A.png"):
        Image.new("RGB", (48, 32)).save(folder / name)
    assert check(changed("images", file_name="A.PNG"), image_root=folder)[0]["images"][0]["file_name"] == "A.PNG"


def test_missing_size_is_that_of_the_file(folder):
    data, problems = check(changed("images", width=-1, height=-1), image_root=folder)
    assert (data["images"][0]["width"], data["images"][0]["height"]) == (48, 32)
    assert problems["image: no size"].action is Action.FIX
