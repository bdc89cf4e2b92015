"""Loading MODEL.WEIGHTS: the file is found, checked against the model, and loaded or refused."""

import json
import logging
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

from gn_det import GNDetError
from gn_det.checkpoint import uri
from gn_det.checkpoint.checkpointer import Checkpointer
from gn_det.checkpoint.parts import DatasetNotes
from gn_det.checkpoint.uri import check_name, find_weights
from gn_det.config.files import load_config
from gn_det.zoo import index as zoo
from helpers.configs import SMALL
from helpers.faulty_server import send_data

SHIPPED = "quickstart_R18_FPN_gn_scratch"


@pytest.fixture
def config():
    def make(*opts) -> CfgNode:
        cfg = load_config(SHIPPED)
        cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(SMALL)))
        cfg.merge_from_list([str(opt) for opt in opts])
        return cfg

    return make


@pytest.fixture(scope="module")
def trained(output_dir):
    """The content of a run's checkpoint. Tests must not modify it."""
    return torch.load(output_dir / "model_final.pth", weights_only=True)


def load(cfg, path, trains=True):
    """Build a model, load the file into it and return the model."""
    model = build_model(cfg)
    Checkpointer(model, cfg=cfg, trains=trains).load(str(path), checkpointables=[])
    return model


def save(path, model, **rest):
    torch.save({"model": model, **rest}, path)
    return path


# ---- finding the file


def test_a_path_is_returned_unchanged(tmp_path):
    file = save(tmp_path / "x.pth", {})
    assert find_weights(str(file)) == find_weights(file) == file
    assert find_weights(f"{file}?matching_heuristics=True") == file


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("https://x.org/a/b.pth", "https://x.org/a/b.pth"),
        ("detectron2://a/b.pkl", "https://dl.fbaipublicfiles.com/detectron2/a/b.pkl"),
        (
            "catalog://ImageNetPretrained/FAIR/R-50-GN",
            "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/47261647/R-50-GN.pkl",
        ),
    ],
)
def test_urls_and_names_of_detectron2_are_fetched_and_verified_if_in_the_zoo(monkeypatch, name, url):
    """A URL in the model zoo is downloaded through it, with its digest.

    detectron2's own download verifies nothing.
    """
    fetched = []
    monkeypatch.setattr(uri, "fetch", lambda url: fetched.append(url) or Path("file"))
    monkeypatch.setattr(zoo, "entry_of", lambda url: None)
    assert find_weights(name) == Path("file") and fetched == [url]
    monkeypatch.setattr(zoo, "entry_of", lambda url: SimpleNamespace(name="entry", urls=(url,)))
    monkeypatch.setattr(zoo, "get_weights", lambda name: Path(name))
    assert find_weights(name) == Path("entry") and fetched == [url]


def test_names_of_the_zoo_are_found_in_the_zoo(monkeypatch):
    monkeypatch.setattr(zoo, "get_weights", lambda name: Path(name))
    assert find_weights("gn_det://R50_GN") == Path("R50_GN")


@pytest.mark.parametrize(
    "name",
    [
        "/no/such/file.pth",
        "catalog://no/such/model",
        "catalog://ImageNetPretrained/x",
        "catalog://Caffe2Detectron/COCO/1/x",
        "nowhere://x.pth",
        "ftp://h/x.pth",
        "FTP://h/x.pth",
        "file:///x.pth",
        "HTTP://h/x.pth",
    ],
)
def test_missing_weights_are_refused_in_one_line(name):
    with pytest.raises(GNDetError, match=f"The weights {name} could not be read") as error:
        find_weights(name)
    assert "\n" not in str(error.value)
    with pytest.raises(GNDetError, match=f"The weights {name} could not be read"):
        check_name(name)


def test_other_schemes_do_not_reach_the_downloader_of_detectron2(monkeypatch):
    """It would write an ftp URL with ".." in its path to any folder."""
    monkeypatch.setattr(PathManager, "get_local_path", lambda *_: pytest.fail("was called"))
    with pytest.raises(GNDetError, match="only http and https URLs are downloaded"):
        find_weights("ftp://h/a/../../../tmp/x.pth")


def test_query_of_a_url_is_part_of_its_address(server, cache):
    files = {f"?id={number}": pickle.dumps({"a": number}) for number in (1, 2)}

    def by_query(handler):
        send_data(files[handler.path[handler.path.index("?") :]])(handler)

    server.answers = [by_query, by_query]
    first, second = (find_weights(f"{server.url}{query}?matching_heuristics=True") for query in files)
    assert [first.read_bytes(), second.read_bytes()] == list(files.values())
    assert [path.partition("/GN")[2] for path, _ in server.requests] == [f"/1/model.pkl?id={n}" for n in (1, 2)]


def test_question_mark_in_a_local_path_is_refused(tmp_path):
    file = save(tmp_path / "what?.pth", {})
    for call in (find_weights, check_name):
        with pytest.raises(GNDetError, match="as options; rename the file"):
            call(str(file))


def test_the_name_is_checked_before_a_run_begins(run_cli, tmp_path):
    check_name("https://x.org/a.pth")
    with pytest.raises(GNDetError, match=r"none\.pth could not be read: the file does not exist"):
        check_name("none.pth")
    arguments = ["--config", SHIPPED, "--weights", tmp_path / "none.pth", "OUTPUT_DIR", tmp_path / "out"]
    code, _, error = run_cli("train_net.py", *arguments)
    assert code == 2 and error.count("\n") == 1 and "none.pth could not be read: the file does not exist" in error
    assert not (tmp_path / "out" / "log.txt").exists()


# ---- refused weights


REFUSED = {  # case: (overrides of the config, word of the problem, part of the error sentence)
    "another norm": (("MODEL.RESNETS.NORM", "BN"), "norm", "they have a norm without statistics"),
    "other classes": (("MODEL.ROI_HEADS.NUM_CLASSES", 5), "classes", "they are for 3 classes, but"),
    "another head": (("MODEL.ROI_BOX_HEAD.FC_DIM", 32), "partial", "tensors in another shape"),
    "another color order": (
        ("INPUT.FORMAT", "RGB"),
        "recipe",
        "they were trained with images in BGR, but the config has RGB: set INPUT.FORMAT to BGR",
    ),
    "other groups": (("MODEL.GN.NUM_GROUPS", 8), "recipe", "the number of groups 32, but the config has 8"),
    "other anchors": (
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512]]),
        "recipe",
        "they were trained with MODEL.ANCHOR_GENERATOR.SIZES [[16], [32], [64], [128], [256]] (the config has [[32], [64]",
    ),
    "LN for GN": (
        ("MODEL.FPN.NORM", "LN", "MODEL.RESNETS.NORM", "LN"),
        "recipe",
        "the number of groups 32, but the config has 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_weights_that_do_not_fit_are_refused_and_the_model_is_unchanged(case, config, output_dir):
    opts, word, reason = REFUSED[case]
    cfg = config(*opts)
    model = build_model(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(GNDetError) as error:
        Checkpointer(model, cfg=cfg).load(str(output_dir / "model_final.pth"), checkpointables=[])
    sentence = str(error.value)
    assert f"do not fit the model {SHIPPED}: they " in sentence
    assert reason in sentence and f"MODEL.GN.ACCEPT_WEIGHTS \"('{word}',)\"" in sentence and "\n" not in sentence
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("case", REFUSED)
def test_weights_with_accepted_differences_are_loaded(case, config, output_dir, trained):
    opts, word, _ = REFUSED[case]
    model = load(config(*opts, "MODEL.GN.ACCEPT_WEIGHTS", (word,)), output_dir / "model_final.pth")
    state = model.state_dict()
    fitting = [name for name, value in trained["model"].items() if name in state and state[name].shape == value.shape]
    assert len(fitting) > 0.9 * len(trained["model"])
    assert all(torch.equal(state[name], trained["model"][name]) for name in fitting)


@pytest.mark.parametrize("case", ["other classes", "another head"])
def test_a_model_that_is_not_trained_may_have_no_random_tensors(case, config, output_dir):
    opts, word, _ = REFUSED[case]
    cfg = config(*opts, "MODEL.GN.ACCEPT_WEIGHTS", (word,))
    with pytest.raises(GNDetError, match="do not fit") as error:
        load(cfg, output_dir / "model_final.pth", trains=False)
    assert "ACCEPT_WEIGHTS" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_cannot_be_accepted(value, config, trained, tmp_path):
    corrupt = dict(trained["model"])
    corrupt["backbone.fpn_output2.weight"] = torch.full_like(corrupt["backbone.fpn_output2.weight"], value)
    reason = r"are corrupt: 1 tensors contain NaN or infinity \(for example backbone.fpn_output2.weight"
    with pytest.raises(GNDetError, match=reason):
        load(config("MODEL.GN.ACCEPT_WEIGHTS", ("partial", "norm")), save(tmp_path / "x.pth", corrupt))


def test_a_recipe_in_the_file_has_priority_over_the_zoo(monkeypatch, config, output_dir, trained, tmp_path):
    monkeypatch.setattr(zoo, "entry_of", lambda name: SimpleNamespace(recipe={"format": "RGB"}))
    with pytest.raises(GNDetError, match="images in RGB, but the config has BGR: set INPUT.FORMAT to RGB"):
        load(config(), save(tmp_path / "bare.pth", trained["model"]))
    load(config(), output_dir / "model_final.pth")
    load(config(), save(tmp_path / "noted.pth", trained["model"], recipe={"format": "BGR"}))


def test_a_checkpoint_with_the_config_of_another_version_gives_a_warning(config, trained, tmp_path, caplog):
    load(config(), save(tmp_path / "x.pth", trained["model"], config={"yaml": "MODEL: {NO_SUCH: 1}"}))
    assert "The recipe of the weights cannot be compared with the config: " in caplog.text


@pytest.mark.parametrize("accepted", ["('norms',)", "classes", "('classes', 3)"])
def test_unknown_words_in_accept_weights_are_refused(accepted, run_cli, tmp_path):
    arguments = ["--config", SHIPPED, "OUTPUT_DIR", tmp_path, "MODEL.GN.ACCEPT_WEIGHTS", accepted]
    code, _, error = run_cli("train_net.py", *arguments)
    assert code == 2 and error.count("\n") == 1 and "ACCEPT_WEIGHTS" in error


# ---- loaded weights


def test_a_backbone_alone_can_be_trained_but_not_evaluated(config, trained, tmp_path, caplog):
    prefix = "backbone.bottom_up."
    backbone = {n.removeprefix(prefix): v for n, v in trained["model"].items() if n.startswith(prefix)}
    file = save(tmp_path / "backbone.pth", backbone)
    caplog.set_level("INFO", logger="gn_det")
    state = load(config(), file).state_dict()
    assert all(torch.equal(state[prefix + name], value) for name, value in backbone.items())
    assert "tensors that are missing or have another shape stay random" in caplog.text and "| RPN" in caplog.text
    with pytest.raises(GNDetError, match="they contain only a backbone, and the rest of the model would be random"):
        load(config(), file, trains=False)


def test_loading_a_whole_model_is_logged_in_one_line(config, output_dir, caplog):
    caplog.set_level("INFO", logger="gn_det")
    load(config(), output_dir / "model_final.pth", trains=False)
    assert "(tensor names of detectron2): all 118 tensors of the model." in caplog.text


def test_batch_counts_are_restored(config, tmp_path):
    """They are not compared with the model, but a resumed run needs them."""
    cfg = config("MODEL.RESNETS.NORM", "BN")
    model = build_model(cfg)
    model.backbone.bottom_up.stem.conv1.norm.num_batches_tracked.fill_(7)
    model.backbone.bottom_up.stem.conv1.norm.running_mean.fill_(1)
    loaded = load(cfg, save(tmp_path / "x.pth", model.state_dict()))
    assert loaded.backbone.bottom_up.stem.conv1.norm.num_batches_tracked == 7


def test_the_checkpointer_works_without_a_config(output_dir, config):
    model = build_model(config("MODEL.ROI_HEADS.NUM_CLASSES", 5))
    with pytest.raises(GNDetError, match=r"do not fit the model GeneralizedRCNN: they are for 3 classes"):
        Checkpointer(model).load(str(output_dir / "model_final.pth"))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantized_weights_cannot_be_accepted(dtype, config, trained, tmp_path):
    quantized = {
        name: value.to(dtype) if name.endswith("conv1.weight") else value for name, value in trained["model"].items()
    }
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(GNDetError, match=rf"have \d+ tensors of type {kind} \(for example backbone"):
        load(config("MODEL.GN.ACCEPT_WEIGHTS", ("partial", "recipe")), save(tmp_path / "x.pth", quantized))


def test_half_precision_weights_are_loaded(config, trained, tmp_path):
    load(config(), save(tmp_path / "x.pth", {name: value.half() for name, value in trained["model"].items()}))


@pytest.mark.parametrize("recipe", [{"pixel_mean": "x"}, {"pixel_std": [1, None, 2]}, {"eps": [1]}, {"format": {}}])
def test_malformed_recipe_in_a_file_is_refused(recipe, config, trained, tmp_path):
    with pytest.raises(GNDetError, match="do not fit the model .*: their recipe has .*, which is not a ") as error:
        load(config(), save(tmp_path / "x.pth", trained["model"], recipe=recipe))
    assert "\n" not in str(error.value)


# ---- resuming


def test_run_is_not_resumed_with_another_recipe(config, output_dir, tmp_path):
    (tmp_path / "model_final.pth").symlink_to(output_dir / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    cfg = config("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (5.0, 5.0, 2.5, 2.5))
    with pytest.raises(GNDetError, match=r"trained with MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS \[10.0, 10.0, 5.0, 5.0\]"):
        Checkpointer(build_model(cfg), str(tmp_path), cfg=cfg).resume_or_load("", resume=True)


@pytest.fixture
def own_dataset(tmp_path):
    """Function of the number of images: registers a dataset with them under one name."""
    name = "own_checkpointer_train"

    def register(images: int) -> str:
        rows = [{"id": number, "file_name": f"{number}.png", "height": 9, "width": 9} for number in range(images)]
        file = tmp_path / f"{images}.json"
        file.write_text(json.dumps({"categories": [], "images": rows, "annotations": []}))
        MetadataCatalog.pop(name, None)
        DatasetCatalog.pop(name, None)
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).json_file = str(file)
        return name

    yield register
    MetadataCatalog.pop(name)
    DatasetCatalog.pop(name)


def test_other_training_data_under_the_same_name_are_reported(own_dataset, caplog):
    """A checkpoint has the digests of its training data."""
    notes = DatasetNotes([own_dataset(3)])
    state = notes.state_dict()
    notes.load_state_dict(state)
    notes.load_state_dict({"own_checkpointer_train": None})
    assert not caplog.records and state["own_checkpointer_train"]["images"] == 3
    DatasetNotes([own_dataset(2)]).load_state_dict(state)
    assert "The checkpoint was trained on own_checkpointer_train (3 images, 0 objects, digest" in caplog.text
    assert "goes on with other data: own_checkpointer_train (2 images" in caplog.text


def test_a_resumed_run_must_load_its_whole_model(config, output_dir, tmp_path):
    cfg = config("MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.GN.ACCEPT_WEIGHTS", ("partial",))
    (tmp_path / "model_final.pth").symlink_to(output_dir / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    with pytest.raises(GNDetError, match="do not fit"):
        Checkpointer(build_model(cfg), str(tmp_path), cfg=cfg).resume_or_load("", resume=True)


@pytest.mark.parametrize("name", ["../other.pth", "/etc/passwd", "", "gone.pth", "."])
def test_last_checkpoint_must_name_a_file_in_its_folder(name, config, output_dir, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "other.pth").symlink_to(output_dir / "model_final.pth")
    (run / "last_checkpoint").write_text(name)
    with pytest.raises(GNDetError, match=r"last_checkpoint does not name a file in its folder"):
        Checkpointer(build_model(config()), str(run), cfg=config()).resume_or_load("", resume=True)


# ---- names and keys of other training scripts


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_weights_of_wrapped_models_are_loaded_and_it_is_said(key, prefix, config, trained, tmp_path, caplog):
    path = tmp_path / "x.pth"
    torch.save({key: {prefix + name: value for name, value in trained["model"].items()}, "epoch": 3}, path)
    with caplog.at_level(logging.INFO):
        model = load(config(), path, trains=False)
    state = model.state_dict()
    assert all(value.equal(state[name]) for name, value in trained["model"].items() if name in state)
    (line,) = [text for text in caplog.messages if "prefixes" in text]
    assert str(path) in line and f"{prefix}backbone" in line


def test_weights_of_a_compiled_backbone_are_loaded(config, trained, tmp_path):
    weights = {name.replace("backbone.", "backbone._orig_mod."): value for name, value in trained["model"].items()}
    state = load(config(), save(tmp_path / "x.pth", weights), trains=False).state_dict()
    assert all(value.equal(state[name]) for name, value in trained["model"].items() if name in state)
