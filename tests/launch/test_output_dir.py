"""What earlier runs left in an OUTPUT_DIR, and how a run describes itself in it."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from gn_det.checkpoint.newest import has_checkpoints
from gn_det.config.files import load_config
from gn_det.data import shapes
from gn_det.data.coco import register_coco_json
from gn_det.evaluation.run_folder import read_datasets
from gn_det.launch.output_dir import (
    is_trained,
    is_training,
    leftovers_in,
    remove_staged_files,
    set_aside,
    staged_file,
    write_description,
)

NAME = "own_output_dir_val"


@pytest.mark.parametrize(
    ("files", "checkpoint", "trained", "training"),
    [
        ([], False, False, False),
        (["config.yaml", "records/a.json", "metrics.json"], False, False, False),  # an empty metrics.json
        (["model_best.pth"], False, True, True),
        (["model_0000003.pth"], True, True, True),
        (["last_checkpoint"], True, True, True),
    ],
)
def test_files_of_a_training_are_recognized(tmp_path, files, checkpoint, trained, training):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert (has_checkpoints(tmp_path), is_trained(tmp_path), is_training(tmp_path)) == (checkpoint, trained, training)


def test_training_without_a_checkpoint_is_recognized_by_its_metrics(tmp_path):
    (tmp_path / "metrics.json").write_text("{}\n")
    assert is_training(tmp_path) and not is_trained(tmp_path)


def test_leftovers_are_moved_and_open_metrics_are_emptied(tmp_path):
    for number in (1, 2):
        (tmp_path / "metrics.json").write_text("old\n")
        (tmp_path / "records").mkdir()
        (tmp_path / "records" / "a.json").write_text("{}")
        leftovers = leftovers_in(tmp_path)
        with (tmp_path / "metrics.json").open("a") as file:
            set_aside(leftovers, tmp_path)
            file.write("new\n")
        assert (tmp_path / "metrics.json").read_text() == "new\n" and not (tmp_path / "records").exists()
        earlier = tmp_path / f"earlier-{number}"
        assert (earlier / "records" / "a.json").read_text() == "{}"
        assert (earlier / "metrics.json").read_text() == "old\n"
        (tmp_path / "metrics.json").unlink()
    set_aside([], tmp_path)
    assert not (tmp_path / "earlier-3").exists()


def test_description_has_the_data_and_warns_if_they_have_changed(tmp_path, caplog):
    json_file, images = shapes.generate(tmp_path / "shapes", num_train=1, num_val=2, size=64)["val"]
    cfg = load_config("quickstart_R18_FPN_gn_scratch", ["OUTPUT_DIR", str(tmp_path / "out")])
    cfg.DATASETS.TEST = (NAME,)
    for run in range(2):
        register_coco_json(NAME, json_file, images, staged_file(NAME))
        staged = staged_file(NAME)
        write_description(cfg, (NAME,))
        assert not staged.parent.exists() and MetadataCatalog.get(NAME).json_file == str(
            tmp_path / f"out/data/{NAME}.json"
        )
        assert read_datasets(tmp_path / "out")[NAME]["data"]["images"] == len(DatasetCatalog.get(NAME)) == 2 - run
        data = json.loads(json_file.read_text())
        data["images"].pop()
        kept = {row["id"] for row in data["images"]}
        data["annotations"] = [row for row in data["annotations"] if row["image_id"] in kept]
        json_file.write_text(json.dumps(data))
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert f"{NAME} (1 images, " in warning and f" replaces {NAME} (2 images, " in warning
    remove_staged_files()
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.remove(NAME)
