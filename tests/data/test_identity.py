"""A dataset is identified by the content of its annotation file."""

import copy
import json
import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from gn_det.data import identity
from gn_det.data.identity import dataset_identity, describe_identity, identity_of, read_identities, same_data

NAME = "identity_test"
DATA = {
    "categories": [{"id": 7, "name": "fig"}, {"id": 9, "name": "pear", "supercategory": "fruit"}],
    "images": [{"id": n, "file_name": f"{n}.png", "height": 32, "width": 48} for n in (0, 1)],
    "annotations": [
        {"id": 1, "image_id": 0, "category_id": 7, "bbox": [2, 3, 10, 10], "area": 100, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 9, "bbox": [2, 3, 10, 10], "area": 100, "iscrowd": 1},
    ],
}


@pytest.fixture
def registered(tmp_path):
    """Function of the data: registers a file with the data under one name, and returns the file."""

    def register(data: dict):
        file = tmp_path / "annotations.json"
        file.write_text(json.dumps(data))
        os.utime(file, ns=(0, hash(file.read_text()) % 2**40))
        if NAME not in DatasetCatalog:
            DatasetCatalog.register(NAME, list)
            MetadataCatalog.get(NAME).json_file = str(file)
        return file

    yield register
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_order_numbering_and_unused_fields_do_not_matter():
    other = copy.deepcopy(DATA)
    for rows in other.values():
        rows.reverse()
    for number, row in enumerate(other["annotations"], start=5):
        row["id"] = number
    other["images"][0]["license"] = 3
    other["info"] = {"year": 2026}
    assert identity_of(DATA) == identity_of(other)
    assert (identity_of(DATA)["images"], identity_of(DATA)["objects"]) == (2, 1)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("categories", "name", "apple"),
        ("images", "file_name", "b.png"),
        ("images", "width", 49),
        ("annotations", "bbox", [2, 3, 10, 11]),
        ("annotations", "category_id", 9),
        ("annotations", "iscrowd", 1),
        ("annotations", "segmentation", [[2, 3, 12, 3, 12, 13]]),
    ],
)
def test_each_field_that_is_used_matters(kind, key, value):
    other = copy.deepcopy(DATA)
    other[kind][0][key] = value
    assert identity_of(DATA)["digest"] != identity_of(other)["digest"]


def test_changed_file_of_one_name_has_another_identity(registered):
    registered(DATA)
    first = dataset_identity(NAME)
    registered(DATA | {"annotations": DATA["annotations"][:1]})
    second = dataset_identity(NAME)
    assert first["digest"].startswith("content:") and not same_data(first, second)
    assert describe_identity(NAME, second).startswith(f"{NAME} (2 images, 1 objects, digest ")


def test_bytes_of_a_large_file_are_hashed(registered, monkeypatch):
    monkeypatch.setattr(identity, "MAX_PARSED", 10)
    registered(DATA)
    found = dataset_identity(NAME)
    assert found["digest"].startswith("file:") and found["images"] is None
    assert describe_identity(NAME, found).startswith(f"{NAME} (digest ")


def test_file_without_annotations_and_missing_file(registered):
    file = registered({"categories": DATA["categories"], "images": DATA["images"]})
    assert dataset_identity(NAME)["objects"] == 0
    file.unlink()
    assert dataset_identity(NAME) is None and dataset_identity("no_such_dataset") is None
    assert describe_identity(NAME, None) == f"{NAME} (digest unknown)"


def test_malformed_identities_are_unknown():
    assert read_identities([1]) == {} and read_identities({"a": {"digest": 1}, "b": 2}) == {"a": None, "b": None}
    assert same_data(None, {"digest": "content:1"})
