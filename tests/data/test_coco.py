"""Registration of data sets in COCO format: accepted files, cleaned copies, and refused files."""

import copy
import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from PIL import Image

from gn_det import GNDetError
from gn_det.data.coco import read_annotations, register_coco_json

SQUARE = {"bbox": [2, 3, 10, 10], "segmentation": [[2, 3, 12, 3, 12, 13, 2, 13]]}
GOOD = {
    "images": [{"id": 0, "file_name": "a.png", "height": 32, "width": 48}],
    "annotations": [{"id": 0, "image_id": 0, "category_id": 7, **SQUARE}],
    "categories": [{"id": 9, "name": "pear"}, {"id": 7, "name": "fig"}],
}


@pytest.fixture
def register(tmp_path):
    """A function that registers ``data``, a dict or the text of the JSON file, and returns its facts."""
    Image.new("RGB", (48, 32)).save(tmp_path / "a.png")

    def call(data):
        (tmp_path / "in.json").write_text(data if isinstance(data, str) else json.dumps(data))
        return register_coco_json("test_own_data", tmp_path / "in.json", tmp_path, tmp_path / "clean" / "out.json")

    yield call
    if "test_own_data" in DatasetCatalog:
        DatasetCatalog.remove("test_own_data")
        MetadataCatalog.remove("test_own_data")


def changed(path: str, value) -> dict:
    """Return GOOD with another value at a path like ``annotations.0.bbox``; ``...`` removes the key."""
    data = copy.deepcopy(GOOD)
    *path, last = (int(part) if part.isdigit() else part for part in path.split("."))
    node = data
    for part in path:
        node = node[part]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return data


def test_classes_are_registered_in_the_order_of_their_ids(register):
    facts = register(GOOD)
    counts = {"images": 1, "objects": 1, "crowds": 0}
    assert facts == {"classes": ["fig", "pear"], **counts, "masks": True, "rle": False}
    assert MetadataCatalog.get("test_own_data").thing_classes == ["fig", "pear"]
    (row,) = DatasetCatalog.get("test_own_data")
    assert row["annotations"][0]["category_id"] == 0 and row["annotations"][0]["bbox"] == [2, 3, 10, 10]


def test_clean_copy_has_the_fields_that_the_coco_api_requires(register, tmp_path):
    register(GOOD)
    clean = json.loads((tmp_path / "clean" / "out.json").read_text())
    annotation = clean["annotations"][0]
    assert clean["info"] == {} and annotation["iscrowd"] == 0 and annotation["area"] == 100
    assert annotation["id"] == 1  # the COCO API counts an object with id 0 as never detected
    assert json.loads((tmp_path / "in.json").read_text()) == GOOD


def test_facts_report_run_length_masks_and_leave_out_crowds(register):
    rle = {"size": [32, 48], "counts": [0, 32 * 48]}
    assert register(changed("annotations.0.segmentation", rle))["rle"]
    crowd = changed("annotations.0.segmentation", rle)
    crowd["annotations"][0]["iscrowd"] = 1
    facts = register(crowd)
    assert facts["objects"] == 0 and not facts["rle"]


def test_boxes_without_masks_are_accepted(register):
    facts = register(changed("annotations.0.segmentation", ...))
    assert facts["objects"] == 1 and not facts["masks"]


def test_size_of_an_image_with_exif_rotation_is_that_of_the_rotated_image(register, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 48)).save(tmp_path / "rotated.jpg", exif=exif)
    assert register(changed("images.0.file_name", "rotated.jpg"))["images"] == 1


@pytest.mark.parametrize(
    ("image", "orientation", "problem"),
    [
        (Image.new("I;16", (48, 32)), 1, "has more than 8 bits per channel"),
        (Image.new("F", (48, 32)), 1, "has more than 8 bits per channel"),
        (Image.new("RGB", (48, 32)), 3, "a TIFF with an EXIF orientation, which detectron2 applies twice"),
    ],
)
def test_images_that_detectron2_misreads_are_refused(register, tmp_path, image, orientation, problem):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "odd.tif", exif=exif)
    with pytest.raises(GNDetError, match=problem):
        register(changed("images.0.file_name", "odd.tif"))


def test_data_without_annotations_are_accepted(register):
    assert register(changed("annotations", []))["objects"] == 0


BAD = {
    "not JSON": ("{", "cannot be read as JSON"),
    "a list": ("[]", "no list 'images'"),
    "no images key": (changed("images", ...), "no list 'images'"),
    "categories of text": (changed("categories", ["fig"]), "no list 'categories'"),
    "no categories": (changed("categories", []), "it has no categories"),
    "no image rows": (changed("images", []), "it has no images"),
    "category without name": (changed("categories.0.name", ...), "no name of type str"),
    "same category id": (changed("categories.0.id", 7), "two categories have the id 7"),
    "same category name": (changed("categories.0.name", "fig"), "two categories have the name 'fig'"),
    "same image id": (
        changed("images", [*GOOD["images"], {**GOOD["images"][0], "file_name": "b.png"}]),
        "two images have the id 0",
    ),
    "image without height": (changed("images.0.height", ...), "image 0 has no height and width"),
    "image of width 0": (changed("images.0.width", 0), "image 0 has no height and width"),
    "no image in the file": (changed("images.0.file_name", "in.json"), "cannot be read as an image"),
    "image of another size": (changed("images.0.width", 50), "has 48 x 32 pixels, but the JSON declares 50 x 32"),
    "missing image": (changed("images.0.file_name", "b.png"), "b.png does not exist"),
    "image outside": (changed("images.0.file_name", "../a.png"), "points outside"),
    "absolute image": (changed("images.0.file_name", "/etc/passwd"), "points outside"),
    "image by URL": (changed("images.0.file_name", "http://example.com/a.png"), "points outside"),
    "unknown image id": (changed("annotations.0.image_id", 5), "annotation 0 has image_id 5"),
    "image id of a list": (changed("annotations.0.image_id", [0]), "annotation 0 has image_id [0]"),
    "unknown category id": (changed("annotations.0.category_id", 1), "annotation 0 has category_id 1"),
    "no box": (changed("annotations.0.bbox", ...), "bbox null"),
    "box of three": (changed("annotations.0.bbox", [1, 2, 3]), "bbox [1, 2, 3]"),
    "NaN box": (json.dumps(changed("annotations.0.bbox", [1, 2, 3, float("nan")])), "bbox [1, 2, 3, NaN]"),
    "negative width": (changed("annotations.0.bbox", [9, 9, -3, 4]), "not above 0"),
    "zero height with a mask": (changed("annotations.0.bbox", [9, 9, 3, 0]), "not above 0"),
    "box outside": (changed("annotations.0.bbox", [48, 0, 5, 5]), "outside its image of 48 x 32"),
    "polygon of two points": (changed("annotations.0.segmentation", [[1, 2, 3, 4]]), "at least 3 points"),
    "odd polygon": (changed("annotations.0.segmentation", [[1, 2, 3, 4, 5, 6, 7]]), "at least 3 points"),
    "NaN polygon": (json.dumps(changed("annotations.0.segmentation.0.0", float("nan"))), "at least 3 points"),
    "mask of another size": (changed("annotations.0.segmentation", {"size": [9, 9], "counts": [81]}), "image's size"),
    "one mask missing": (
        changed(
            "annotations", [*GOOD["annotations"], {"id": 3, "image_id": 0, "category_id": 7, "bbox": [1, 1, 2, 2]}]
        ),
        "annotation 3 has no segmentation, but other annotations have one",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_json_is_refused_in_one_sentence(register, name, tmp_path):
    data, problem = BAD[name]
    with pytest.raises(GNDetError) as error:
        register(data)
    assert problem in str(error.value) and "in.json" in str(error.value) and "\n" not in str(error.value)
    assert "test_own_data" not in DatasetCatalog and not (tmp_path / "clean").exists()


def test_stock_detectron2_accepts_duplicate_image_ids_silently(tmp_path):
    """A reason for the checks: stock detectron2 drops one of two images with the same id without a warning."""
    data = changed("images", [GOOD["images"][0], {**GOOD["images"][0], "file_name": "b.png"}])
    (tmp_path / "x.json").write_text(json.dumps(data))
    rows = load_coco_json(str(tmp_path / "x.json"), str(tmp_path))
    assert {row["file_name"][-5:] for row in rows} == {"b.png"}


def test_each_kind_of_problem_has_one_example_and_a_count(register):
    data = changed("annotations", [{"id": n, "image_id": 0, "category_id": 1, **SQUARE} for n in range(1008)])
    data["annotations"].append({"id": "x", "image_id": "7", "category_id": 7, **SQUARE})
    with pytest.raises(GNDetError) as error:
        register(data)
    assert "has 1,009 problems of 2 kinds: annotation 0 has category_id 1" in str(error.value)
    assert '(and 1,007 more like this); annotation "x" has image_id "7", which is not' in str(error.value)
    assert "--fix NEW.json writes a repaired copy" in str(error.value)


def test_image_files_with_the_same_problem_are_one_kind(register, tmp_path):
    for number in (1, 2, 3):
        Image.new("RGB", (40 + number, 32)).save(tmp_path / f"a {number}.png")
    rows = [{"id": n, "file_name": f"a {n}.png", "height": 32, "width": 48} for n in (1, 2, 3)]
    with pytest.raises(GNDetError, match=r"has 3 problems: .*1.png has 41 x 32 .* \(and 2 more like this\)\.$"):
        register({**changed("images", rows), "annotations": []})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_other_encodings_of_unicode_are_read(register, tmp_path, encoding):
    (tmp_path / "b.json").write_text(json.dumps(changed("categories.0.name", "Bürste"), ensure_ascii=False), encoding)
    assert read_annotations(tmp_path / "b.json")["categories"][0]["name"] == "Bürste"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"_via_settings": {}, "_via_img_metadata": {}}, "a project of VIA"),
        ({"shapes": [], "imagePath": "a.png"}, "a file of Labelme"),
        ([{"id": 1, "data": {"image": "a.png"}, "annotations": []}], "an export of Label Studio's own format"),
    ],
)
def test_other_formats_are_named(register, data, name):
    with pytest.raises(GNDetError, match=f"in.json is {name}, and not in COCO format"):
        register(data)


def test_repairs_are_logged(register, caplog):
    register(changed("annotations.0.iscrowd", None))
    assert "in.json: annotation 0 has iscrowd null: null, false and 0" in caplog.text


def test_masks_are_not_needed_without_a_mask_head(register, tmp_path):
    data = changed("annotations", [{"id": n, "image_id": 0, "category_id": 7, **SQUARE} for n in range(3)])
    data["annotations"][0]["segmentation"] = [[]]
    data["annotations"][1]["segmentation"] = {"size": [32, 48], "counts": [5]}
    (tmp_path / "in.json").write_text(json.dumps(data))
    facts = register_coco_json("test_own_data", tmp_path / "in.json", tmp_path, tmp_path / "out.json", masks=False)
    (row,) = DatasetCatalog.get("test_own_data")
    assert facts["objects"] == len(row["annotations"]) == 3  # detectron2 would leave out the first one
    with pytest.raises(GNDetError, match="annotation 0 has no segmentation.*annotation 1 has a run-length mask"):
        register(data)


def test_missing_annotation_file_and_image_folder_are_refused(tmp_path):
    with pytest.raises(GNDetError, match="annotation file .*no.json does not exist"):
        register_coco_json("x", tmp_path / "no.json", tmp_path, tmp_path / "c.json")
    (tmp_path / "a.json").write_text(json.dumps(GOOD))
    with pytest.raises(GNDetError, match="image folder .* does not exist"):
        register_coco_json("x", tmp_path / "a.json", tmp_path / "nowhere", tmp_path / "c.json")
