"""Another process can read the OUTPUT_DIR of a run."""

import json
import shutil

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from gn_det import GNDetError
from gn_det.config.files import load_config
from gn_det.data.coco import register_coco_json
from gn_det.evaluation.run_folder import (
    read_config,
    read_datasets,
    read_metrics,
    read_records,
    register_datasets,
    remember_datasets,
)

NAME = "own_test_folder_val"
DATA = {
    "images": [{"id": 0, "file_name": "a.png", "height": 32, "width": 48}],
    "annotations": [{"id": 0, "image_id": 0, "category_id": 7, "bbox": [2, 3, 10, 10]}],
    "categories": [{"id": 9, "name": "pear"}, {"id": 7, "name": "fig"}],
}


def forget(name: str) -> None:
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)


@pytest.fixture
def folder(tmp_path):
    """An OUTPUT_DIR whose dataset is not registered in this process."""
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (48, 32)).save(images / "a.png")
    (tmp_path / "in.json").write_text(json.dumps(DATA))
    register_coco_json(NAME, tmp_path / "in.json", images, tmp_path / "out" / "data" / f"{NAME}.json")
    remember_datasets(tmp_path / "out", (NAME,))
    forget(NAME)
    yield tmp_path / "out"
    forget(NAME)


def test_data_set_is_registered_again(folder):
    assert register_datasets(folder) == [NAME]
    (row,) = DatasetCatalog.get(NAME)
    assert row["file_name"] == str(folder.parent / "images" / "a.png") and row["annotations"][0]["category_id"] == 0
    metadata = MetadataCatalog.get(NAME)
    assert metadata.thing_classes == ["fig", "pear"] and metadata.evaluator_type == "coco"
    assert metadata.thing_dataset_id_to_contiguous_id == {7: 0, 9: 1}


def test_moved_folder_is_read_at_its_new_path(folder):
    moved = shutil.move(folder, folder.parent / "moved")
    assert read_datasets(moved)[NAME]["json"] == str(moved / "data" / f"{NAME}.json")
    register_datasets(moved)
    assert len(DatasetCatalog.get(NAME)) == 1


def test_relative_paths_are_resolved(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    forget(NAME)
    register_coco_json(NAME, "in.json", "images", folder / "data" / f"{NAME}.json")
    remember_datasets("out", (NAME,))
    monkeypatch.chdir("/")
    assert read_datasets(folder)[NAME]["images"] == str(folder.parent / "images")


def test_name_is_registered_for_the_folder_that_is_read_last(folder, tmp_path):
    """Two runs may have used one name for different data."""
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    register_datasets(folder)
    MetadataCatalog.get(NAME).set(mark="first")
    register_datasets(folder)
    assert MetadataCatalog.get(NAME).mark == "first"  # the same file: not registered again
    register_datasets(other)
    assert MetadataCatalog.get(NAME).json_file == str(other / "data" / f"{NAME}.json")
    (folder / "data" / f"{NAME}.json").unlink()
    register_datasets(folder)  # its file no longer exists: the registered dataset is kept
    assert MetadataCatalog.get(NAME).json_file == str(other / "data" / f"{NAME}.json")


def test_later_run_keeps_the_entries_of_an_earlier_run(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    before = json.loads((folder / "data" / "datasets.json").read_text())[NAME]
    remember_datasets(folder, ("shapes_val", "voc_2007_val"))  # the latter is not in COCO's format
    entries = json.loads((folder / "data" / "datasets.json").read_text())
    assert entries.keys() == {NAME, "shapes_val"} and entries[NAME] == before
    assert entries["shapes_val"]["classes"] == ["circle", "square", "triangle"]


def test_file_names_outside_the_image_folder_are_refused(folder):
    path = folder / "data" / f"{NAME}.json"
    path.write_text(path.read_text().replace("a.png", "../../a.png"))
    register_datasets(folder)
    with pytest.raises(GNDetError, match="has changed since the run: .* points outside"):
        DatasetCatalog.get(NAME)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"a": 1}', '{"a": {"json": 1}}', '{"a": {"json": "", "images": "", "classes": [1], "ids": []}}'],
)
def test_damaged_file_is_refused_and_replaced_by_the_next_run(folder, text):
    (folder / "data" / "datasets.json").write_text(text)
    with pytest.raises(GNDetError, match="datasets.json") as error:
        register_datasets(folder)
    assert "\n" not in str(error.value)
    remember_datasets(folder, ("shapes_val",))
    assert register_datasets(folder) == ["shapes_val"]


def test_folder_without_the_file_has_no_data_sets(tmp_path):
    assert register_datasets(tmp_path) == []


def test_config_and_records(tmp_path):
    with pytest.raises(GNDetError, match="has no config.yaml"):
        read_config(tmp_path)
    with pytest.raises(GNDetError, match="does not exist"):
        read_config(tmp_path / "nowhere")
    (tmp_path / "config.yaml").write_text(load_config("mask_rcnn_R50_FPN_gn").dump())
    assert read_config(tmp_path).MODEL.GN.CONFIG == "mask_rcnn_R50_FPN_gn" and read_records(tmp_path) == []
    (tmp_path / "records").mkdir()
    record = {"config": "x", "dataset": "d", "box": None, "mask": None}
    for name, date in (("a", "2026-02-01"), ("b", "2026-01-01")):
        (tmp_path / "records" / f"{name}.json").write_text(json.dumps(record | {"date": date}))
    assert [row["date"] for row in read_records(tmp_path)] == ["2026-01-01", "2026-02-01"]
    for text in ("{", "[]", '{"config": "x"}'):
        (tmp_path / "records" / "c.json").write_text(text)
        with pytest.raises(GNDetError, match=r"c\.json"):
            read_records(tmp_path)


def test_metrics_of_a_killed_and_resumed_run(tmp_path):
    assert read_metrics(tmp_path) == []
    rows = [
        {"iteration": 19, "total_loss": 3.0},
        {"iteration": 39, "total_loss": 2.0, "lr": 0.1},
        {"iteration": 59, "total_loss": 1.0},
        {"iteration": 39, "total_loss": 9.0},  # after --resume, with which 59 is not reached again
        {"iteration": 49, "total_loss": float("nan")},
    ]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "metrics.json").write_text("\n".join([lines[0], '{"iteration": 3', "7", *lines[1:], '{"iter']))
    found = read_metrics(tmp_path)
    assert [row["iteration"] for row in found] == [19, 39, 49]
    assert found[1] == {"iteration": 39, "total_loss": 9.0}
