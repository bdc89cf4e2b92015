"""From MODEL.WEIGHTS to a model: found, checked, loaded, or refused with the model as it was."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from gn_det import GNDetError
from gn_det.checkpoint import uri
from gn_det.checkpoint.checkpointer import Checkpointer
from gn_det.checkpoint.uri import check_name, find_weights
from gn_det.config.files import load_config
from gn_det.zoo import index as zoo
from helpers.configs import SMALL

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
    """The run's checkpoint, as data. Read only."""
    return torch.load(output_dir / "model_final.pth", weights_only=True)


def load(cfg, path, trains=True):
    """A new model into which the file was loaded."""
    model = build_model(cfg)
    Checkpointer(model, cfg=cfg, trains=trains).load(str(path), checkpointables=[])
    return model


def save(path, model, **rest):
    torch.save({"model": model, **rest}, path)
    return path


# ---- where they are


def test_a_path_is_itself(tmp_path):
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
def test_urls_and_detectron2s_names_are_fetched_and_verified_as_the_zoos(monkeypatch, name, url):
    """What the model zoo knows of a URL goes with it; detectron2's own download checks nothing."""
    asked = []
    monkeypatch.setattr(uri, "fetch", lambda url: asked.append(url) or Path("file"))
    monkeypatch.setattr(zoo, "entry_of", lambda url: None)
    assert find_weights(name) == Path("file") and asked == [url]
    monkeypatch.setattr(zoo, "entry_of", lambda url: SimpleNamespace(name="it", urls=(url,)))
    monkeypatch.setattr(zoo, "get_weights", lambda name: Path(name))
    assert find_weights(name) == Path("it") and asked == [url]


def test_names_of_the_zoo_are_the_zoos(monkeypatch):
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
    ],
)
def test_what_is_not_there_is_one_sentence(name):
    with pytest.raises(GNDetError, match=f"The weights {name} could not be read") as error:
        find_weights(name)
    assert "\n" not in str(error.value)


def test_a_name_is_checked_before_a_run_begins(run_cli, tmp_path):
    check_name("https://x.org/a.pth")
    with pytest.raises(GNDetError, match=r"none\.pth could not be read: there is no such file"):
        check_name("none.pth")
    arguments = ["--config", SHIPPED, "--weights", tmp_path / "none.pth", "OUTPUT_DIR", tmp_path / "out"]
    code, _, said = run_cli("train_net.py", *arguments)
    assert code == 2 and said.count("\n") == 1 and "none.pth could not be read: there is no such file" in said
    assert not (tmp_path / "out" / "log.txt").exists()


# ---- what is refused


REFUSED = {
    "another norm": (("MODEL.RESNETS.NORM", "BN"), "norm", "it has a norm without statistics"),
    "other classes": (("MODEL.ROI_HEADS.NUM_CLASSES", 5), "classes", "is for 3 classes"),
    "another head": (("MODEL.ROI_BOX_HEAD.FC_DIM", 32), "partial", "have another shape in it"),
    "another order of colours": (("INPUT.FORMAT", "RGB"), "recipe", "trained with images in BGR"),
    "other groups": (("MODEL.GN.NUM_GROUPS", 8), "recipe", "and the config has 8"),
    "LN for GN": (("MODEL.FPN.NORM", "LN", "MODEL.RESNETS.NORM", "LN"), "recipe", "and the config has 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_belong_is_refused_and_the_model_stays(case, config, output_dir):
    opts, word, said = REFUSED[case]
    cfg = config(*opts)
    model = build_model(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(GNDetError) as error:
        Checkpointer(model, cfg=cfg).load(str(output_dir / "model_final.pth"), checkpointables=[])
    sentence = str(error.value)
    assert f"do not belong to the model {SHIPPED}: it" in sentence or "of the model's" in sentence
    assert said in sentence and f"MODEL.GN.ACCEPT_WEIGHTS \"('{word}',)\"" in sentence and "\n" not in sentence
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_accepted_is_loaded(case, config, output_dir, trained):
    opts, word, _ = REFUSED[case]
    model = load(config(*opts, "MODEL.GN.ACCEPT_WEIGHTS", (word,)), output_dir / "model_final.pth")
    there = model.state_dict()
    same = [name for name, value in trained["model"].items() if name in there and there[name].shape == value.shape]
    assert len(same) > 0.9 * len(trained["model"])
    assert all(torch.equal(there[name], trained["model"][name]) for name in same)


@pytest.mark.parametrize("case", ["other classes", "another head"])
def test_a_model_that_is_used_as_it_is_loaded_has_nothing_random(case, config, output_dir):
    opts, word, _ = REFUSED[case]
    cfg = config(*opts, "MODEL.GN.ACCEPT_WEIGHTS", (word,))
    with pytest.raises(GNDetError, match="do not belong") as error:
        load(cfg, output_dir / "model_final.pth", trains=False)
    assert "ACCEPT_WEIGHTS" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_whatever_is_accepted(value, config, trained, tmp_path):
    spoilt = dict(trained["model"])
    spoilt["backbone.fpn_output2.weight"] = torch.full_like(spoilt["backbone.fpn_output2.weight"], value)
    with pytest.raises(GNDetError, match=r"are spoilt: NaN or infinity in 1 tensors \(backbone.fpn_output2.weight"):
        load(config("MODEL.GN.ACCEPT_WEIGHTS", ("partial", "norm")), save(tmp_path / "x.pth", spoilt))


def test_the_recipe_is_the_files_own_before_it_is_the_zoos(monkeypatch, config, output_dir, trained, tmp_path):
    monkeypatch.setattr(zoo, "entry_of", lambda name: SimpleNamespace(recipe={"format": "RGB"}))
    with pytest.raises(GNDetError, match="images in RGB, and the config has BGR: set INPUT.FORMAT"):
        load(config(), save(tmp_path / "bare.pth", trained["model"]))
    load(config(), output_dir / "model_final.pth")
    load(config(), save(tmp_path / "noted.pth", trained["model"], recipe={"format": "BGR"}))


def test_a_config_of_another_version_in_a_checkpoint_is_said(config, trained, tmp_path, caplog):
    load(config(), save(tmp_path / "x.pth", trained["model"], config={"yaml": "MODEL: {NO_SUCH: 1}"}))
    assert "is not compared with the config" in caplog.text


@pytest.mark.parametrize("accepted", ["('norms',)", "classes", "('classes', 3)"])
def test_unknown_words_are_refused(accepted, run_cli, tmp_path):
    arguments = ["--config", SHIPPED, "OUTPUT_DIR", tmp_path, "MODEL.GN.ACCEPT_WEIGHTS", accepted]
    code, _, said = run_cli("train_net.py", *arguments)
    assert code == 2 and said.count("\n") == 1 and "ACCEPT_WEIGHTS" in said


# ---- what is loaded


def test_a_backbone_begins_a_training_and_is_no_model(config, trained, tmp_path, caplog):
    prefix = "backbone.bottom_up."
    backbone = {n.removeprefix(prefix): v for n, v in trained["model"].items() if n.startswith(prefix)}
    file = save(tmp_path / "backbone.pth", backbone)
    caplog.set_level("INFO", logger="gn_det")
    there = load(config(), file).state_dict()
    assert all(torch.equal(there[prefix + name], value) for name, value in backbone.items())
    assert "what is missing or has another shape is random" in caplog.text and "| RPN" in caplog.text
    with pytest.raises(GNDetError, match="it holds a backbone alone, and the rest of the model would be random"):
        load(config(), file, trains=False)


def test_all_of_a_model_is_said_in_a_line(config, output_dir, caplog):
    caplog.set_level("INFO", logger="gn_det")
    load(config(), output_dir / "model_final.pth", trains=False)
    assert "(detectron2's names): all 118 tensors of the model are loaded." in caplog.text


def test_counts_of_batches_are_restored(config, tmp_path):
    """They are not compared, but a run that goes on needs them."""
    cfg = config("MODEL.RESNETS.NORM", "BN")
    model = build_model(cfg)
    model.backbone.bottom_up.stem.conv1.norm.num_batches_tracked.fill_(7)
    model.backbone.bottom_up.stem.conv1.norm.running_mean.fill_(1)
    found = load(cfg, save(tmp_path / "x.pth", model.state_dict()))
    assert found.backbone.bottom_up.stem.conv1.norm.num_batches_tracked == 7


def test_a_library_may_use_it_without_a_config(output_dir, config):
    model = build_model(config("MODEL.ROI_HEADS.NUM_CLASSES", 5))
    with pytest.raises(GNDetError, match=r"do not belong to the model GeneralizedRCNN: it is for 3 classes"):
        Checkpointer(model).load(str(output_dir / "model_final.pth"))


# ---- what a run goes on from


def test_a_run_goes_on_from_its_own_whole_model(config, output_dir, tmp_path):
    cfg = config("MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.GN.ACCEPT_WEIGHTS", ("partial",))
    (tmp_path / "model_final.pth").symlink_to(output_dir / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    with pytest.raises(GNDetError, match="do not belong"):
        Checkpointer(build_model(cfg), str(tmp_path), cfg=cfg).resume_or_load("", resume=True)


@pytest.mark.parametrize("name", ["../other.pth", "/etc/passwd", "", "gone.pth", "."])
def test_last_checkpoint_names_a_file_beside_it(name, config, output_dir, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "other.pth").symlink_to(output_dir / "model_final.pth")
    (run / "last_checkpoint").write_text(name)
    with pytest.raises(GNDetError, match=r"last_checkpoint names no file beside it"):
        Checkpointer(build_model(config()), str(run), cfg=config()).resume_or_load("", resume=True)
