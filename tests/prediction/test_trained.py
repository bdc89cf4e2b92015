"""What a run left, or a config and weights, becomes a model; what does not fit is refused."""

import os
import shutil

import numpy as np
import pytest
import torch
from detectron2.utils.file_io import PathHandler, PathManager

from gn_det import GNDetError, Predictor
from gn_det.checkpoint import read_notes
from gn_det.config.files import load_config
from gn_det.prediction.trained import find_trained, load_trained

SHIPPED = "quickstart_R18_FPN_gn_scratch"


@pytest.fixture
def run(output_dir, tmp_path):
    """A copy of the run, to be changed."""
    return shutil.copytree(output_dir, tmp_path / "run")


def change(run, **parts):
    """Set or, with None, remove parts of the checkpoint; a function gets the part that is there."""
    path = run / "model_final.pth"
    data = torch.load(path, weights_only=True)
    for name, value in parts.items():
        data[name] = value(data[name]) if callable(value) else value
    torch.save({name: value for name, value in data.items() if value is not None}, path)
    return path


def test_each_form_of_a_model_predicts_the_same(output_dir, tmp_path):
    checkpoint = output_dir / "model_final.pth"
    whole = torch.load(checkpoint, weights_only=True)
    torch.save({"model": whole["model"]}, tmp_path / "bare.pth")
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


def test_a_config_that_is_handed_in_stays_as_it_is(output_dir):
    cfg = load_config(str(output_dir / "config.yaml"))
    cfg.freeze()
    before = cfg.dump()
    Predictor(cfg, output_dir / "model_final.pth", min_score=0.9)
    assert cfg.dump() == before


def test_final_weights_go_before_the_last_and_others_are_asked_for_by_name(run):
    for name in ("model_best.pth", "model_0000001.pth"):
        shutil.copy(run / "model_final.pth", run / name)
    (run / "last_checkpoint").write_text("model_0000001.pth")
    assert str(run / "model_final.pth") == find_trained(run)[0].MODEL.WEIGHTS
    assert str(run / "model_best.pth") == find_trained(run, "model_best.pth")[0].MODEL.WEIGHTS
    (run / "model_final.pth").unlink()
    assert str(run / "model_0000001.pth") == find_trained(run)[0].MODEL.WEIGHTS


def test_the_name_of_the_last_checkpoint_does_not_lead_out_of_the_folder(run):
    shutil.move(run / "model_final.pth", run.parent / "other.pth")
    (run / "last_checkpoint").write_text("../other.pth")
    with pytest.raises(GNDetError, match="holds no checkpoint yet"):
        find_trained(run)


def test_weights_may_be_a_uri_of_detectron2s(output_dir):
    class Handler(PathHandler):
        def _get_supported_prefixes(self):
            return ["test_trained://"]

        def _get_local_path(self, path, **kwargs):
            return str(output_dir / path.removeprefix("test_trained://"))

    PathManager.register_handler(Handler(), allow_override=True)
    for arguments in (("test_trained://model_final.pth",), (SHIPPED, "test_trained://model_final.pth")):
        cfg, names, _ = find_trained(*arguments)
        assert cfg.MODEL.WEIGHTS == "test_trained://model_final.pth" and names == ["circle", "square", "triangle"]
    load_trained(find_trained("test_trained://model_final.pth")[0])


@pytest.mark.parametrize(
    ("model", "weights", "said"),
    [
        ("no/such", None, "no/such is neither a folder, a checkpoint nor a config"),
        ("quickstart_R18_FPN_gn", None, f"did you mean {SHIPPED}"),
        (SHIPPED, None, "A config alone predicts nothing"),
        ("a.pth", "b.pth", "a.pth and b.pth are both weights"),
        ("no/such.pth", None, r"weights no/such\.pth could not be read"),
        (SHIPPED, "no/such.pth", r"weights no/such\.pth could not be read"),
        ("test_nowhere://x.pth", None, "could not be read"),
    ],
)
def test_what_is_not_there_is_one_sentence(model, weights, said):
    with pytest.raises(GNDetError, match=said):
        find_trained(model, weights)


def test_a_folder_that_is_no_run_is_one_sentence(run, tmp_path):
    with pytest.raises(GNDetError, match=r"has no config\.yaml"):
        find_trained(tmp_path)
    (run / "model_final.pth").unlink()
    with pytest.raises(GNDetError, match="holds no checkpoint yet"):
        find_trained(run)


def test_a_checkpoint_without_its_config_asks_for_it(run):
    path = change(run, config=None)
    with pytest.raises(GNDetError, match="does not remember its config: name its config too"):
        find_trained(path)
    assert find_trained(run)[1] == ["circle", "square", "triangle"]


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04cut"])
def test_a_damaged_checkpoint_is_one_sentence(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(GNDetError, match=r"x\.pth could not be read") as error:
        find_trained(tmp_path / "x.pth")
    assert "\n" not in str(error.value)


class Runs:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_a_hostile_checkpoint_does_not_run(tmp_path):
    torch.save({"config": {"yaml": Runs(tmp_path / "marker")}}, tmp_path / "evil.pth")
    with pytest.raises(GNDetError, match="could not be read"):
        read_notes(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("text", "said"),
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
def test_a_hostile_or_broken_config_in_a_checkpoint_is_refused(run, text, said):
    (run / "secret.yaml").write_text("MODEL: {MASK_ON: False}")
    text = text.format(marker=run / "marker", secret=run / "secret.yaml")
    with pytest.raises(GNDetError, match=said):
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
def test_notes_of_other_types_count_as_none(run, parts):
    assert read_notes(str(change(run, **parts))) == {}


def test_old_files_that_are_no_zip_are_read(run):
    data = torch.load(run / "model_final.pth", weights_only=True)
    torch.save(data, run / "old.pth", _use_new_zipfile_serialization=False)
    assert read_notes(str(run / "old.pth"))["ids"] == [1, 2, 3]


def without(*parts):
    return lambda model: {key: value for key, value in model.items() if not any(part in key for part in parts)}


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (without("mask_head"), r"tensors are not in it \(roi_heads.mask_head"),
        (without("res5.1.conv2.norm.weight"), r"1 of the model's \d+ tensors are not in it"),
        (lambda model: model | {"roi_heads.box_predictor.bbox_pred.bias": torch.zeros(3)}, "1 of .*another shape"),
        (lambda model: model | {"roi_heads.mask_head.mask_fcn9.weight": torch.zeros(1)}, "1 of its .*not in the model"),
    ],
)
def test_weights_of_another_model_are_refused_in_one_sentence(run, caplog, edit, said):
    change(run, model=edit)
    with pytest.raises(GNDetError, match=f"do not belong to the model {SHIPPED}: .*{said}"):
        Predictor(run)
    assert not caplog.records  # nothing about it beside the sentence


def test_old_pixel_means_in_the_weights_are_no_matter(run):
    change(run, model=lambda model: model | {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)})
    assert Predictor(run).model.pixel_mean.min() > 90


def test_weights_with_masks_serve_a_model_of_boxes(run):
    cfg = load_config(str(run / "config.yaml"), ["MODEL.MASK_ON", "False"])
    found = Predictor(cfg, run)(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    assert len(found) and not found.has("pred_masks")


def test_the_data_that_was_trained_on_need_not_be_here(run):
    cfg = load_config(str(run / "config.yaml"), ["DATASETS.TEST", "('own_unknown',)", "DATASETS.TRAIN", "('gone',)"])
    assert Predictor(cfg, run).classes == ["circle", "square", "triangle"]


def test_a_config_that_cannot_work_is_refused(run):
    cfg = load_config(str(run / "config.yaml"), ["MODEL.RESNETS.NORM", "XN"])
    with pytest.raises(GNDetError, match="XN"):
        Predictor(cfg, run)
    cfg = load_config(str(run / "config.yaml"), ["INPUT.FORMAT", "L"])
    with pytest.raises(GNDetError, match=r"INPUT\.FORMAT is 'L'"):
        Predictor(cfg, run)


def test_classes_are_the_checkpoints_and_their_number_the_configs(run):
    change(run, classes={"names": ["a", "b"], "ids": [7, 9]})
    cfg, names, ids = find_trained(SHIPPED, run)
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, names, ids) == (2, ["a", "b"], [7, 9])


@pytest.mark.parametrize(
    ("classes", "datasets", "number", "expected"),
    [
        ({"names": ["a", "b"]}, "()", 5, (["a", "b"], [0, 1])),  # from before ids were kept, data unknown
        ({"names": ["a", "b"], "ids": [4]}, "()", 5, (["a", "b"], [0, 1])),
        (
            {"names": ["circle", "square", "triangle"]},
            "('shapes_val',)",
            5,
            (["circle", "square", "triangle"], [1, 2, 3]),
        ),
        (None, "('shapes_val',)", 3, (["circle", "square", "triangle"], [1, 2, 3])),
        (None, "('shapes_val',)", 2, (["0", "1"], [0, 1])),  # not that data set's
        (None, "('own_unknown',)", 2, (["0", "1"], [0, 1])),
    ],
)
def test_classes_from_what_is_known(run, classes, datasets, number, expected):
    change(run, classes=classes)
    opts = ["DATASETS.TEST", datasets, "DATASETS.TRAIN", "()", "MODEL.ROI_HEADS.NUM_CLASSES", str(number)]
    assert find_trained(load_config(SHIPPED, opts), run)[1:] == expected


def test_coco_keeps_its_ids(tmp_path):
    """80 classes with ids up to 90; a file of detectron2's zoo names none."""
    (tmp_path / "zoo.pkl").touch()
    _, names, ids = find_trained("mask_rcnn_R50_FPN_gn", tmp_path / "zoo.pkl")
    assert names[0] == "person" and ids[-1] == 90 and len(ids) == len(names) == 80
