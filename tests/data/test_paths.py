"""File names that lead out of the image folder: refused, with a way to allow the folder that they lead to."""

import json
import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from gn_det.config.files import load_config
from gn_det.data.coco import register_again, register_coco_json
from gn_det.data.paths import ALLOWED_ROOTS, check_file_names, is_inside, names_outside
from gn_det.training.trainer import Trainer
from helpers.errors import error_sentence

NAMES = ["a.png", "sub/a.png", "sub/b.png", "in.png", "linked/c.png"]
OUTSIDE = ["../disk/c.png", "sub/../../disk/c.png", "out.png", "sub/out.png", "disk/c.png", "{disk}/c.png", "chain.png"]


@pytest.fixture(autouse=True)
def no_allowed_roots(monkeypatch):
    monkeypatch.delenv(ALLOWED_ROOTS, raising=False)


@pytest.fixture
def root(tmp_path):
    """An image folder with files, links within it, and links to a file and a folder of another disk."""
    root, disk = tmp_path / "images", tmp_path / "disk"
    for folder in (root / "sub", disk):
        folder.mkdir(parents=True)
    for path in (
        root / "a.png",
        root / "sub" / "a.png",
        root / "sub" / "b.png",
        root / "sub" / "c.png",
        disk / "c.png",
    ):
        Image.new("RGB", (48, 32)).save(path)
    links = {"in.png": "sub/b.png", "linked": "sub", "out.png": "../disk/c.png", "disk": disk, "chain.png": "out.png"}
    for link, target in links.items():
        (root / link).symlink_to(target)
    (root / "sub" / "out.png").symlink_to(disk / "c.png")
    return root


def outside(root) -> list[str]:
    return [name.format(disk=root.parent / "disk") for name in OUTSIDE]


def test_only_names_that_lead_out_are_found(root):
    names = outside(root)
    assert list(names_outside(root, NAMES)) == []
    found = dict(names_outside(root, [*NAMES, *names]))
    assert list(found) == names and set(found.values()) == {str(root.parent / "disk" / "c.png")}
    assert [is_inside(root, name) for name in NAMES + names] == [True] * len(NAMES) + [False] * len(names)


@pytest.mark.parametrize("name", ["http://h/a.png", "file:///a.png", "a\0.png"])
def test_names_that_are_no_paths(name, root):
    assert list(names_outside(root, [name])) == [(name, "")] and not is_inside(root, name)


def test_an_image_folder_that_is_a_link_is_fine(root, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "link", "link", "images", "./images/", "images/sub/.."):
        assert list(names_outside(folder, [*NAMES, "none.png", "none/a.png"])) == []
        assert [name for name, _ in names_outside(folder, OUTSIDE[2:5])] == OUTSIDE[2:5]


def test_folders_of_the_environment_are_allowed(root, monkeypatch):
    monkeypatch.setenv(ALLOWED_ROOTS, os.pathsep.join(["/nowhere", str(root.parent / "disk"), ""]))
    assert list(names_outside(root, NAMES + outside(root))) == []
    assert [name for name, _ in names_outside(root, ["../x.png", "/etc/passwd"])] == ["../x.png", "/etc/passwd"]


# ---- datasets


def coco(*names: str) -> dict:
    return {
        "images": [{"id": n, "file_name": name, "height": 32, "width": 48} for n, name in enumerate(names, 1)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
            for n, _ in enumerate(names, 1)
        ],
        "categories": [{"id": 1, "name": "fig"}],
        "info": {},
    }


@pytest.fixture
def dataset(tmp_path):
    """Function of file names: writes annotations of these images, and returns their path."""
    names = ("test_paths_a", "test_paths_b")

    def write(*file_names: str, to: str = "in.json"):
        (tmp_path / to).write_text(json.dumps(coco(*file_names)))
        return tmp_path / to

    yield write
    for name in names:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_own_data_with_a_link_out_are_refused(root, dataset, tmp_path, monkeypatch):
    json_file, clean = dataset("a.png", "out.png"), tmp_path / "clean.json"
    sentence = error_sentence(register_coco_json, "test_paths_a", json_file, root, clean)
    assert f"{root}/out.png leads out of the image folder to {tmp_path}/disk/c.png" in sentence
    assert f"set ${ALLOWED_ROOTS} to {tmp_path}/disk" in sentence
    monkeypatch.setenv(ALLOWED_ROOTS, f"{tmp_path}/disk")
    assert register_coco_json("test_paths_a", json_file, root, clean)["images"] == 2


def test_data_of_a_run_with_a_link_out_are_refused(root, dataset):
    json_file = dataset("a.png", "out.png")
    register_again("test_paths_a", str(json_file), str(root), ["fig"], [1])
    assert "out.png" in error_sentence(DatasetCatalog.get, "test_paths_a")


@pytest.mark.parametrize("name", ["out.png", "../disk/c.png", "../../secret.png", "/etc/passwd"])
@pytest.mark.parametrize("split", ["TRAIN", "TEST"])
def test_datasets_of_detectron2_are_checked_when_they_are_loaded(name, split, root, dataset):
    register_coco_instances("test_paths_a", {}, str(dataset("a.png", name)), str(root))
    cfg = load_config("quickstart_R18_FPN_gn_scratch", [f"DATASETS.{split}", "('test_paths_a',)"])
    build = (
        Trainer.build_train_loader if split == "TRAIN" else lambda cfg: Trainer.build_test_loader(cfg, "test_paths_a")
    )
    sentence = error_sentence(build, cfg)
    assert sentence.startswith(f"The file_name {name!r} in the annotations of test_paths_a leads out of")


def test_images_of_two_datasets_are_checked_in_their_own_folders(root, dataset):
    register_coco_instances("test_paths_a", {}, str(dataset("a.png", to="a.json")), str(root))
    register_coco_instances("test_paths_b", {}, str(dataset("c.png", to="b.json")), str(root.parent / "disk"))
    names = ["test_paths_a", "test_paths_b"]
    check_file_names(names, [row for name in names for row in DatasetCatalog.get(name)])


def test_datasets_without_an_image_folder_are_not_checked():
    DatasetCatalog.register("test_paths_a", lambda: [{"file_name": "/anywhere/a.png"}])
    check_file_names(["test_paths_a"], DatasetCatalog.get("test_paths_a"))
    DatasetCatalog.remove("test_paths_a")
