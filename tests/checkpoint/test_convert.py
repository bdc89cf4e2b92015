"""Converting weights of any origin to detectron2's names, and to files that detectron2 loads."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from gn_det import GNDetError, Predictor
from gn_det.checkpoint import FOLDED, convert, origin_of, place, read_file, read_notes, write_safetensors
from gn_det.checkpoint.convert import plain_names
from gn_det.checkpoint.export import mapping_report
from gn_det.config.files import load_config
from helpers.foreign import (
    detectron2_resnet,
    detectron2_state,
    detectron_blobs,
    detectron_imagenet,
    detectron_training,
    group_norm_reproduce,
    mmdet_backbone,
    mmdet_state,
    timm_resnet50_gn,
    torchvision_resnet50,
)

# Half of the usual width, as with scale=2 in helpers.foreign.
HALF = (
    "MODEL.RESNETS.STEM_OUT_CHANNELS 32 MODEL.RESNETS.RES2_OUT_CHANNELS 128 MODEL.RESNETS.WIDTH_PER_GROUP 32 "
    "MODEL.FPN.OUT_CHANNELS 128 MODEL.ROI_BOX_HEAD.CONV_DIM 128 MODEL.ROI_BOX_HEAD.FC_DIM 512 "
    "MODEL.ROI_MASK_HEAD.CONV_DIM 128 MODEL.DEVICE cpu"
).split()
MODELS = {
    "FPN": ("mask_rcnn_R50_FPN_gn", {}),
    "C4": ("mask_rcnn_R50_C4_gn", {"fpn": False}),
    "BN*": ("mask_rcnn_R50_FPN_frozenbn", {"norm": "affine", "head": "2fc"}),
}


@pytest.fixture(scope="module")
def models():
    """{a key of MODELS: Mask R-CNN of half the usual width, with random weights}."""
    return {kind: build_model(load_config(name, HALF)) for kind, (name, _) in MODELS.items()}


class StockCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer, which stores what did not match."""

    def _log_incompatible_keys(self, incompatible):
        self.incompatible = incompatible


def load_stock(model, path):
    checkpointer = StockCheckpointer(model)
    checkpointer.load(str(path))
    return checkpointer.incompatible


def overwrite(model):
    """Set all values of a model to a number that no weights have."""
    for tensor in model.state_dict().values():
        tensor.fill_(-7)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert not [name for name in expected if not torch.equal(found[name], expected[name])]


# ---- the origin of names


@pytest.mark.parametrize(
    ("state", "origin"),
    [
        (detectron_blobs, "Detectron"),
        (detectron_imagenet, "Detectron"),
        (lambda: mmdet_state(1), "mmdetection"),
        (lambda: mmdet_state(2), "mmdetection"),
        (mmdet_backbone, "mmdetection"),
        (torchvision_resnet50, "torchvision"),
        (timm_resnet50_gn, "torchvision"),
        (group_norm_reproduce, "torchvision"),
        (detectron2_state, "detectron2"),
        (lambda: detectron2_state(fpn=False), "detectron2"),
        (detectron2_resnet, "detectron2"),
    ],
)
def test_the_origin_is_recognized_by_the_names(state, origin):
    assert origin_of(state()) == origin


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.", "model.module."]
)
def test_the_origin_is_recognized_with_the_prefixes_of_wrapped_models(prefix):
    assert origin_of(iter([f"{prefix}{name}" for name in mmdet_state(1)])) == "mmdetection"


def test_prefixes_are_removed_only_where_they_are_those_of_wrapped_models():
    assert plain_names(["backbone._orig_mod.a", "b"]) == {"backbone.a": "backbone._orig_mod.a", "b": "b"}
    assert plain_names(["model.a", "b"]) == {"model.a": "model.a", "b": "b"}
    assert plain_names(["_orig_mod.a", "a"]) == {"_orig_mod.a": "_orig_mod.a", "a": "a"}  # they would collide
    assert plain_names([]) == {}


@pytest.mark.parametrize(
    "names",
    [
        ["weight", "bias"],
        [],
        ["backbone.body.layer1.0.conv1.weight", "roi_heads.box_head.fc6.weight"],  # torchvision's detectors
        ["blocks.0.attn.qkv.weight"],
    ],
)
def test_unknown_names_are_refused(names):
    with pytest.raises(GNDetError, match="The weights have unknown tensor names") as error:
        convert(dict.fromkeys(names, torch.ones(1)))
    assert all(name in str(error.value) for name in names)


@pytest.mark.parametrize("state", [detectron2_state, detectron2_resnet])
def test_names_of_detectron2_are_unchanged(state):
    state = state()
    unneeded = {"pixel_mean", "pixel_std", "proposal_generator.anchor_generator.cell_anchors.0", "stem.fc.weight"}
    unneeded = {name for name in unneeded if ("stem" in name) == ("stem.conv1.weight" in state)}
    converted = convert(state | dict.fromkeys(unneeded, torch.ones(1)))
    assert_same(converted.weights, state)
    assert converted.backbone_only == ("stem.conv1.weight" in state)
    assert converted.dropped.keys() == unneeded and not converted.leftover
    assert converted.sources == {name: name for name in state}


def test_the_names_of_a_parallel_model_are_reported_with_their_prefix():
    state = group_norm_reproduce() | {"module.odd": torch.ones(1)}
    converted = convert(state)
    assert converted.sources["stem.conv1.weight"] == "module.conv1.weight"
    assert converted.dropped.keys() == {"module.fc.weight", "module.fc.bias"} and converted.leftover == ["module.odd"]
    folded = convert({f"module.{name}": value for name, value in detectron_imagenet(norm="affine").items()}).sources
    assert folded["stem.conv1.norm.running_var"] == FOLDED


# ---- placing a backbone in a model


@pytest.mark.parametrize(("kind", "prefix"), [("FPN", "backbone.bottom_up."), ("C4", "backbone.")])
def test_a_backbone_is_placed_in_a_model(models, kind, prefix):
    names = models[kind].state_dict().keys()
    placed = place(convert(mmdet_backbone(scale=2)).weights, names)
    assert len(placed) == 159 and placed.keys() <= names
    assert placed[f"{prefix}res4.0.conv1.weight"][0, 0] == detectron2_resnet(scale=2)["res4.0.conv1.weight"][0, 0]
    assert ("roi_heads.res5.2.conv3.weight" in placed) == (kind == "C4")
    overwrite(models[kind])
    missing, unexpected = models[kind].load_state_dict(placed, strict=False)
    assert not unexpected and not [name for name in missing if ".res" in name or "stem" in name]


def test_a_backbone_is_placed_in_a_resnet_alone(models):
    resnet = models["FPN"].backbone.bottom_up
    placed = place(convert(mmdet_backbone(scale=2)).weights, resnet.state_dict())
    resnet.load_state_dict(placed, strict=True)


def test_names_that_the_model_does_not_have_are_placed_as_well(models):
    placed = place(
        {"res4.22.conv1.weight": torch.ones(1), "res5.7.conv1.weight": torch.ones(1)}, models["C4"].state_dict()
    )
    assert set(placed) == {"backbone.res4.22.conv1.weight", "roi_heads.res5.7.conv1.weight"}


def test_the_names_of_a_detector_are_not_changed_by_place(models):
    state = detectron2_state()
    assert_same(place(state, models["C4"].state_dict()), state)


def test_a_backbone_is_refused_for_a_model_without_one():
    with pytest.raises(GNDetError, match="The weights are those of a ResNet, but the model has no ResNet"):
        place(detectron2_resnet(), ["weight", "bias"])


# ---- tools/convert_checkpoint.py


def save_foreign(path, state):
    """Save weights in the format of their origin: Detectron's pickle, or a PyTorch file."""
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps({"blobs": {k: v.numpy() for k, v in state.items()}, "cfg": "A: 1"}, protocol=2))
    else:
        torch.save({"state_dict": state, "meta": {"epoch": 1}, "optimizer": {}}, path)
    return path


FOREIGN = {
    "Detectron": ("a.pkl", detectron_blobs),
    "mmdetection 1.x": ("a.pth", partial(mmdet_state, 1)),
    "mmdetection 2.x": ("a.pth", partial(mmdet_state, 2)),
}


@pytest.mark.parametrize(
    ("origin", "kind"), [*((origin, "FPN") for origin in FOREIGN), ("Detectron", "C4"), ("Detectron", "BN*")]
)
def test_stock_detectron2_loads_every_tensor_of_a_converted_detector(tmp_path, run_cli, models, origin, kind):
    network = {"scale": 2, **MODELS[kind][1]}
    file, state = FOREIGN[origin]
    source, target = save_foreign(tmp_path / file, state(**network)), tmp_path / "out.pth"
    code, _, err = run_cli("convert_checkpoint.py", source, target, "--to", "detectron2")
    assert (code, err) == (0, "")
    overwrite(models[kind])
    assert not any(load_stock(models[kind], target))
    assert_same(models[kind].state_dict(), detectron2_state(**network))
    assert torch.load(target)["__author__"] == origin


@pytest.mark.parametrize("kind", ["FPN", "C4"])
@pytest.mark.parametrize(
    ("state", "file"), [(mmdet_backbone, "a.pth"), (detectron2_resnet, "a.pth"), (detectron_imagenet, "a.pkl")]
)
def test_stock_detectron2_loads_a_converted_backbone_into_a_detector(tmp_path, run_cli, models, kind, state, file):
    source, target = save_foreign(tmp_path / file, state(scale=2)), tmp_path / "out.pth"
    assert run_cli("convert_checkpoint.py", source, target, "--to", "detectron2")[0] == 0
    overwrite(models[kind])
    missing, unexpected, shapes = load_stock(models[kind], target)
    assert not unexpected and not shapes
    placed = place(detectron2_resnet(scale=2), models[kind].state_dict())
    state = models[kind].state_dict()
    assert_same({name: state[name] for name in placed}, placed)
    assert not set(missing) & set(placed)


def test_safetensors_have_the_converted_weights(tmp_path, run_cli):
    source = save_foreign(tmp_path / "a.pkl", detectron_training(detectron_blobs(scale=8, norm="affine"), "affine"))
    code, _, err = run_cli("convert_checkpoint.py", source, tmp_path / "a.safetensors", "--to", "safetensors")
    assert (code, err) == (0, "")
    parts = read_file(tmp_path / "a.safetensors")
    assert_same(parts["model"], detectron2_state(scale=8, norm="affine"))
    assert parts["origin"] == "Detectron"


def test_the_config_and_classes_of_a_checkpoint_are_kept(tmp_path, run_cli, output_dir):
    source, notes = output_dir / "model_final.pth", read_notes(str(output_dir / "model_final.pth"))
    safe, back = tmp_path / "a.safetensors", tmp_path / "b.pth"
    assert run_cli("convert_checkpoint.py", source, safe, "--to", "safetensors")[0] == 0
    assert run_cli("convert_checkpoint.py", safe, back, "--to", "detectron2")[0] == 0
    weights = torch.load(source)["model"]
    for path in (safe, back):
        assert read_notes(str(path)) == notes and set(notes) == {"config", "names", "ids"}
        assert_same(read_file(path)["model"], weights)
    assert_same(Predictor(back, device="cpu").model.state_dict(), weights)


@pytest.mark.parametrize("to", ["detectron2", "safetensors"])
def test_a_recipe_that_is_not_plain_is_refused(tmp_path, run_cli, to):
    torch.save({"model": detectron2_resnet(scale=8), "recipe": {"mean": np.ones(3)}}, tmp_path / "a.pth")
    target = tmp_path / ("b.pth" if to == "detectron2" else "b.safetensors")
    assert "its notes must be text and numbers" in refused(tmp_path, run_cli, tmp_path / "a.pth", target, "--to", to)


def test_a_recipe_and_the_digests_of_the_data_are_kept(tmp_path, run_cli):
    recipe = {"pixel_mean": [1.0, 2.0, 3.0], "groups": 32}
    datasets = {"own_a_train": {"digest": "content:1", "images": 3, "objects": 4}}
    source = {"model": detectron2_resnet(scale=8), "recipe": recipe, "datasets": datasets}
    torch.save(source, tmp_path / "a.pth")
    for source, target in (("a.pth", "b.safetensors"), ("b.safetensors", "c.pth")):
        to = "safetensors" if target.endswith("s") else "detectron2"
        assert run_cli("convert_checkpoint.py", tmp_path / source, tmp_path / target, "--to", to)[0] == 0
        written = read_file(tmp_path / target)
        assert written["recipe"] == recipe and written["datasets"] == datasets


def test_the_training_state_is_reported_as_left_out(tmp_path, run_cli):
    source = tmp_path / "a.pth"
    torch.save({"model": detectron2_resnet(scale=8) | {"note": "text"}, "optimizer": {}, "iteration": 5}, source)
    _, out, _ = run_cli("convert_checkpoint.py", source, tmp_path / "b.pth", "--to", "detectron2")
    assert "left out beside the weights: optimizer, iteration" in out
    assert "left out: 1 x str instead of a tensor (note)" in out


def test_the_report_counts_tensors_by_part(tmp_path, run_cli):
    source = save_foreign(tmp_path / "a.pkl", detectron_training(detectron_blobs(scale=8)))
    _, out, _ = run_cli("convert_checkpoint.py", source, tmp_path / "b.pth", "--to", "detectron2")
    counts = {row.split("|")[1].strip(): row.split("|")[2].strip() for row in out.splitlines() if row.startswith("|")}
    parts = {"backbone": "159", "FPN": "24", "RPN": "6", "box head": "14", "box predictor": "4", "mask head": "14"}
    assert {name: counts[name] for name in parts} == parts
    assert "a detector with the tensor names of Detectron: 223 tensors, 0.77 M values" in out
    assert "left out: 223 x optimizer momentum (conv1_w_momentum, " in out
    assert "left out: 2 x ImageNet classifier (pred_w, pred_b)" in out
    assert "left out beside the weights: cfg" in out
    assert "res4_5_branch2b_gn_s" not in out


def test_the_verbose_report_lists_all_names():
    lines = mapping_report(convert(detectron_imagenet(norm="affine")), [], verbose=True).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")][2:]
    assert len(rows) == 265
    assert ["res4_0_branch1_w", "res4.0.shortcut.weight", "(1024, 512, 1, 1)"] in rows
    assert ["(BN folded: no statistics)", "stem.conv1.norm.running_var", "(64,)"] in rows


def refused(tmp_path, run_cli, source, *arguments):
    """Run the tool, check that it prints one error and changes no file, and return the error."""
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    code, out, err = run_cli("convert_checkpoint.py", source, *arguments)
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    return err


def test_a_file_with_names_that_no_rule_covers_is_refused(tmp_path, run_cli):
    odd = {f"backbone.odd{i}": torch.ones(1) for i in range(5)}
    source = save_foreign(tmp_path / "a.pth", mmdet_state(2, scale=8) | odd)
    err = refused(tmp_path, run_cli, source, tmp_path / "b.pth", "--to", "detectron2")
    assert (
        "names of mmdetection 2.x, but 5 of its 228 names are unknown (backbone.odd0, backbone.odd1, backbone.odd2, ...)"
        in err
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("to", ["detectron2", "safetensors"])
def test_values_that_are_not_finite_are_refused(tmp_path, run_cli, value, to):
    state = mmdet_backbone(scale=8)
    state["layer2.1.gn2.bias"] = torch.tensor([1.0, value])
    target = tmp_path / ("b.pth" if to == "detectron2" else "b.safetensors")
    err = refused(tmp_path, run_cli, save_foreign(tmp_path / "a.pth", state), target, "--to", to)
    assert "NaN or infinite values in layer2.1.gn2.bias; nothing was written" in err


def test_an_existing_file_is_overwritten_only_with_force(tmp_path, run_cli):
    source, target = save_foreign(tmp_path / "a.pth", mmdet_backbone(scale=8)), tmp_path / "b.pth"
    target.write_text("old")
    assert "--force" in refused(tmp_path, run_cli, source, target, "--to", "detectron2")
    assert run_cli("convert_checkpoint.py", source, target, "--to", "detectron2", "--force")[0] == 0
    assert_same(read_file(target)["model"], detectron2_resnet(scale=8))
    same_file = (target, target)
    assert run_cli("convert_checkpoint.py", *same_file, "--to", "detectron2", "--force")[0] == 0
    assert_same(read_file(target)["model"], detectron2_resnet(scale=8))


@pytest.mark.parametrize(
    ("target", "to", "reason"),
    [
        ("b.safetensors", "detectron2", "use .pth."),
        ("b.pkl", "detectron2", "use .pth."),
        ("b.pth", "safetensors", "use .safetensors."),
        ("no/b.pth", "detectron2", "cannot be written"),
        ("a.pth/b.safetensors", "safetensors", "cannot be written"),
    ],
)
def test_an_impossible_target_is_refused(tmp_path, run_cli, target, to, reason):
    source = save_foreign(tmp_path / "a.pth", mmdet_backbone(scale=8))
    assert reason in refused(tmp_path, run_cli, source, tmp_path / target, "--to", to)


def test_an_unreadable_source_is_refused(tmp_path, run_cli):
    (tmp_path / "evil.pth").write_bytes(b"cos\nsystem\n(S'mkdir marker'\ntR.")
    for name in ("evil.pth", "no.pth"):
        refused(tmp_path, run_cli, tmp_path / name, tmp_path / "b.pth", "--to", "detectron2")
    write_safetensors(tmp_path / "a.safetensors", {"weight": torch.ones(2)}, {})
    err = refused(tmp_path, run_cli, tmp_path / "a.safetensors", tmp_path / "b.pth", "--to", "detectron2")
    assert "unknown tensor names (weight, ...)" in err
