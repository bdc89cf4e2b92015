"""Loading a trained model from a run, a checkpoint, or a config with weights; refusing what does not fit."""

import os
import shutil

import numpy as np
import pytest
import torch

from gn_det import GNDetError, Predictor
from gn_det.checkpoint import read_notes
from gn_det.config.files import load_config
from gn_det.prediction.trained import find_trained

SHIPPED = "quickstart_R18_FPN_gn_scratch"


@pytest.fixture
def run(output_dir, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(output_dir, tmp_path / "run")


def change(run, **parts):
    """Change entries of the checkpoint and return its path.

    Each value replaces the entry of its name; None removes the entry, and a function maps the old entry to the new one.
    """
    path = run / "model_final.pth"
    data = torch.load(path, weights_only=True)
    for name, value in parts.items():
        data[name] = value(data[name]) if callable(value) else value
    torch.save({name: value for name, value in data.items() if value is not None}, path)
    return path


def test_every_way_to_name_a_model_predicts_the_same(output_dir, tmp_path):
    checkpoint = output_dir / "model_final.pth"
    complete = torch.load(checkpoint, weights_only=True)
    torch.save({"model": complete["model"]}, tmp_path / "bare.pth")
    bare = load_config(str(output_dir / "config.yaml"))
    bare.MODEL.WEIGHTS = str(tmp_path / "bare.pth")
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    expected = Predictor(output_dir)(image)
    for arguments in (
        (str(output_dir),),
        (checkpoint,),
        (str(checkpoint),),
        (output_dir / "config.yaml", checkpoint),
        (output_dir / "config.yaml", tmp_path / "bare.pth"),
        (str(output_dir / "config.yaml"), str(output_dir)),
        (bare,),
    ):
        found = Predictor(*arguments, device="cpu")(image)
        assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor) and len(found) > 0


def test_config_argument_is_not_modified(output_dir):
    cfg = load_config(str(output_dir / "config.yaml"))
    cfg.freeze()
    before = cfg.dump()
    Predictor(cfg, output_dir / "model_final.pth", min_score=0.9)
    assert cfg.dump() == before


def test_final_checkpoint_is_preferred_to_the_last_and_others_are_found_by_name(run):
    for name in ("model_best.pth", "model_0000001.pth"):
        shutil.copy(run / "model_final.pth", run / name)
    (run / "last_checkpoint").write_text("model_0000001.pth")
    assert str(run / "model_final.pth") == find_trained(run)[0].MODEL.WEIGHTS
    assert str(run / "model_best.pth") == find_trained(run, "model_best.pth")[0].MODEL.WEIGHTS
    (run / "model_final.pth").unlink()
    assert str(run / "model_0000001.pth") == find_trained(run)[0].MODEL.WEIGHTS


def test_last_checkpoint_cannot_lead_out_of_the_folder(run):
    shutil.move(run / "model_final.pth", run.parent / "other.pth")
    (run / "last_checkpoint").write_text("../other.pth")
    with pytest.raises(GNDetError, match="contains no checkpoint"):
        find_trained(run)


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("no/such", None, "no/such is not a folder, a checkpoint, or a config"),
        ("quickstart_R18_FPN_gn", None, f"did you mean {SHIPPED}"),
        (SHIPPED, None, f"{SHIPPED} is only a config; pass weights"),
        ("a.pth", "b.pth", "a.pth and b.pth are both weights"),
        ("no/such.pth", None, r"weights no/such\.pth could not be read"),
        (SHIPPED, "no/such.pth", r"weights no/such\.pth could not be read"),
        ("test_nowhere://x.pth", None, "could not be read"),
    ],
)
def test_missing_model_is_refused(model, weights, message):
    with pytest.raises(GNDetError, match=message):
        find_trained(model, weights)


def test_folder_without_a_run_is_refused(run, tmp_path):
    with pytest.raises(GNDetError, match=r"has no config\.yaml"):
        find_trained(tmp_path)
    (run / "model_final.pth").unlink()
    with pytest.raises(GNDetError, match="contains no checkpoint"):
        find_trained(run)


def test_checkpoint_without_its_config_is_refused(run):
    path = change(run, config=None)
    with pytest.raises(GNDetError, match="does not contain its config; pass the config too"):
        find_trained(path)
    assert find_trained(run)[1] == ["circle", "square", "triangle"]


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04cut"])
def test_damaged_checkpoint_is_refused_in_one_sentence(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(GNDetError, match=r"x\.pth could not be read") as error:
        find_trained(tmp_path / "x.pth")
    assert "\n" not in str(error.value)


class RunsCode:
    """An object that creates the folder ``marker`` when it is unpickled without restrictions."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_code_in_a_hostile_checkpoint_is_not_executed(tmp_path):
    torch.save({"config": {"yaml": RunsCode(tmp_path / "marker")}}, tmp_path / "evil.pth")
    with pytest.raises(GNDetError, match="could not be read"):
        read_notes(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: !!python/object/apply:os.mkdir [{marker}]", "is not a plain YAML config"),
        ("_BASE_: {secret}", "'_BASE_' can only be used in files"),
        ("MODEL: {{NO_SUCH: 1}}", "no config key MODEL.NO_SUCH"),
        ("just text", "The config in .*model_final.pth"),
        ("- 1", "The config in .*model_final.pth"),
        ("MODEL: [", "is not a plain YAML config"),
        ("MODEL: {{BACKBONE: {{FREEZE_AT: many}}}}", "takes a value of type int"),
    ],
)
def test_hostile_or_broken_config_in_a_checkpoint_is_refused(run, text, message):
    (run / "secret.yaml").write_text("MODEL: {MASK_ON: False}")
    text = text.format(marker=run / "marker", secret=run / "secret.yaml")
    with pytest.raises(GNDetError, match=message):
        find_trained(change(run, config={"yaml": text}))
    assert not (run / "marker").exists()


@pytest.mark.parametrize(
    "parts",
    [
        {"config": ["x"], "classes": "x"},
        {"config": {"yaml": 3}, "classes": {"names": [1, 2], "ids": ["a"]}},
        {"config": {}, "classes": {"names": "abc", "ids": {}}},
    ],
)
def test_notes_of_wrong_types_are_ignored(run, parts):
    assert read_notes(str(change(run, **parts))) == {}


def test_notes_of_files_in_the_old_format_are_read(run):
    data = torch.load(run / "model_final.pth", weights_only=True)
    torch.save(data, run / "old.pth", _use_new_zipfile_serialization=False)
    assert read_notes(str(run / "old.pth"))["ids"] == [1, 2, 3]


def without(*parts):
    """Return a function that removes the tensors whose names contain one of the parts."""
    return lambda model: {key: value for key, value in model.items() if not any(part in key for part in parts)}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without("mask_head"), r"lack \d+ of the model's \d+ tensors \(for example roi_heads.mask_head"),
        (without("res5.1.conv2.norm.weight"), r"lack 1 of the model's \d+ tensors"),
        (lambda model: model | {"roi_heads.box_predictor.bbox_pred.bias": torch.zeros(3)}, "1 of .*another shape"),
        (
            lambda model: model | {"roi_heads.mask_head.mask_fcn9.weight": torch.zeros(1)},
            "1 tensors that the model does not have",
        ),
    ],
)
def test_weights_of_another_model_are_refused_in_one_sentence(run, caplog, edit, message):
    change(run, model=edit)
    with pytest.raises(GNDetError, match=f"do not fit the model {SHIPPED}: .*{message}"):
        Predictor(run)
    assert not caplog.records  # the error is the only message


def test_pixel_means_in_the_weights_are_ignored(run):
    change(run, model=lambda model: model | {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)})
    assert Predictor(run).model.pixel_mean.min() > 90


def test_weights_with_masks_load_into_a_model_without_masks(run):
    cfg = load_config(str(run / "config.yaml"), ["MODEL.MASK_ON", "False"])
    found = Predictor(cfg, run)(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    assert len(found) and not found.has("pred_masks")


def test_training_data_can_be_unavailable(run):
    cfg = load_config(str(run / "config.yaml"), ["DATASETS.TEST", "('own_unknown',)", "DATASETS.TRAIN", "('gone',)"])
    assert Predictor(cfg, run).classes == ["circle", "square", "triangle"]


def test_invalid_config_is_refused(run):
    cfg = load_config(str(run / "config.yaml"), ["MODEL.RESNETS.NORM", "XN"])
    with pytest.raises(GNDetError, match="XN"):
        Predictor(cfg, run)
    cfg = load_config(str(run / "config.yaml"), ["INPUT.FORMAT", "L"])
    with pytest.raises(GNDetError, match=r"INPUT\.FORMAT is 'L'"):
        Predictor(cfg, run)


def test_classes_of_the_checkpoint_set_num_classes(run):
    change(run, classes={"names": ["a", "b"], "ids": [7, 9]})
    cfg, names, ids = find_trained(SHIPPED, run)
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, names, ids) == (2, ["a", "b"], [7, 9])


@pytest.mark.parametrize(
    ("classes", "datasets", "number", "expected"),
    [
        ({"names": ["a", "b"]}, "()", 5, (["a", "b"], [0, 1])),  # old checkpoint without ids, unknown dataset
        ({"names": ["a", "b"], "ids": [4]}, "()", 5, (["a", "b"], [0, 1])),
        (
            {"names": ["circle", "square", "triangle"]},
            "('shapes_val',)",
            5,
            (["circle", "square", "triangle"], [1, 2, 3]),
        ),
        (None, "('shapes_val',)", 3, (["circle", "square", "triangle"], [1, 2, 3])),
        (None, "('shapes_val',)", 2, (["0", "1"], [0, 1])),  # another number of classes than the dataset
        (None, "('own_unknown',)", 2, (["0", "1"], [0, 1])),
    ],
)
def test_classes_come_from_the_checkpoint_or_else_the_data_set(run, classes, datasets, number, expected):
    change(run, classes=classes)
    opts = ["DATASETS.TEST", datasets, "DATASETS.TRAIN", "()", "MODEL.ROI_HEADS.NUM_CLASSES", str(number)]
    assert find_trained(load_config(SHIPPED, opts), run)[1:] == expected


def test_coco_model_has_the_category_ids_of_coco(tmp_path):
    """COCO has 80 classes with ids up to 90. A file of detectron2's model zoo does not contain them."""
    (tmp_path / "zoo.pkl").touch()
    _, names, ids = find_trained("mask_rcnn_R50_FPN_gn", tmp_path / "zoo.pkl")
    assert names[0] == "person" and ids[-1] == 90 and len(ids) == len(names) == 80
