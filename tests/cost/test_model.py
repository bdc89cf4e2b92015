"""FLOPs, memory, and norms, compared with closed forms, independent counts, and published numbers."""

import functools
import json

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from gn_det import GNDetError
from gn_det.config.files import load_config
from gn_det.cost.memory import LiveStorages, inference_memory, training_memory
from gn_det.cost.model import analyze, image_size
from gn_det.cost.parts import RCNNParts
from gn_det.cost.tables import format_analysis
from helpers.configs import MODELS

SMALL = "quickstart_R18_FPN_gn_scratch"
C4 = "mask_rcnn_R50_C4_gn"


@pytest.fixture(scope="module")
def small() -> dict:
    return analyze(load_config(SMALL), (64, 64), (2, 4))


@pytest.fixture(scope="module")
def full() -> dict:
    return analyze(load_config("mask_rcnn_R50_FPN_gn"), (64, 64), (1,))


def test_checkpointed_activations_are_not_kept(small):
    analysis = analyze(load_config(SMALL, ["TRAIN.CHECKPOINT_ACTIVATIONS", "True"]), (64, 64), (2,))
    (step,), plain_step = analysis["memory"]["training"], small["memory"]["training"][0]
    plain, kept = ({row["part"]: row["kept"] for row in result["parts"]} for result in (small, analysis))
    block = 2 * 64 * 16 * 16 * 4  # bytes of the output of a block of res2 for 2 images
    assert kept["backbone res2"] == 2 * block < plain["backbone res2"] and kept["box head"] == plain["box head"]
    assert step["peak"] < plain_step["peak"] and analysis["flops_by_operator"] == small["flops_by_operator"]


def part(result: dict, name: str) -> dict:
    return next(row for row in result["parts"] if row["part"] == name)


def test_stem_in_closed_form(small):
    stem, out = part(small, "backbone stem"), 32 * 32
    assert stem["flops"] == 7 * 7 * 3 * 64 * out + 5 * 64 * out  # convolution; 5 per element for GN
    assert stem["activations"] == 64 * out
    assert stem["parameters"] == stem["trained"] == 7 * 7 * 3 * 64 + 2 * 64


def test_box_head_in_closed_form(small):
    cells, rois = 7 * 7, small["rois"]["inference"]
    per_roi = 4 * (9 * 64 * 64 * cells + 5 * 64 * cells)  # 3x3 convolutions with GN
    per_roi += cells * 64 * 256 + 256 * 4 + 256 * 4  # fc layer; class scores with background; one box
    per_roi += 64 * cells * 4 * 2**2  # RoIAlign: 4 multiply-adds for each of 2 x 2 samples
    assert rois == 100 and part(small, "box head")["flops"] == rois * per_roi
    assert part(small, "box head")["activations"] == rois * (4 * 64 * cells + 256 + 4 + 4)


def test_operators_add_up_to_the_parts(small, full):
    for result in (small, full):
        assert sum(result["flops_by_operator"].values()) == sum(row["flops"] for row in result["parts"])
    assert {"conv", "linear", "group_norm", "roi_align", "upsample_nearest2d"} == set(small["flops_by_operator"])
    assert {"relu", "add", "max_pool2d"} <= set(small["not_counted"])


@pytest.mark.parametrize("name", [SMALL, C4])
def test_heads_are_linear_in_the_rois(name, monkeypatch):
    """The FLOPs of one RoI, multiplied, equal detectron2's count of the parts run on all RoIs."""
    from detectron2.utils.analysis import FlopCountAnalysis

    from gn_det.cost import model as analysis

    opts = ["MODEL.RPN.POST_NMS_TOPK_TEST", 5, "TEST.DETECTIONS_PER_IMAGE", 3]
    cfg = load_config(name, [*map(str, opts), "MODEL.DEVICE", "cpu"])
    counted = analyze(cfg, (64, 64), (1,))
    direct = FlopCountAnalysis(RCNNParts(build_model(cfg), 5, 3).eval(), torch.zeros(1, 3, 64, 64))
    direct.set_op_handle(**analysis._HANDLES).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    operators = {k: v for k, v in direct.by_operator().items() if not k.startswith(analysis._NOT_COUNTED)}
    assert counted["flops_by_operator"] == operators


def test_parameters_match_the_published_model(full):
    """45.71 M parameters, 45.49 M of them trained with FREEZE_AT 2, and 69 GN layers, as in Detectron's 223 blobs."""
    assert round(sum(row["parameters"] for row in full["parts"]) / 1e6, 2) == 45.71
    assert round(sum(row["trained"] for row in full["parts"]) / 1e6, 2) == 45.49
    assert len(full["norms"]) == 69 and part(full, "backbone res2")["trained"] == 0
    assert "other" not in [row["part"] for row in full["parts"]]


def test_norms_of_every_layer():
    cfg = load_config(SMALL, "MODEL.RESNETS.NORM LN MODEL.FPN.NORM IN MODEL.ROI_BOX_HEAD.NORM BN".split())
    rows = {row["layer"]: row for row in analyze(cfg, (64, 64), (1,))["norms"]}
    stem = {"layer": "backbone.bottom_up.stem.conv1.norm", "part": "backbone stem", "norm": "LN", "channels": 64}
    assert rows["backbone.bottom_up.stem.conv1.norm"] == stem | {"groups": 1, "trained": True}
    assert rows["backbone.fpn_lateral2.norm"]["norm"] == "IN" and rows["backbone.fpn_lateral2.norm"]["groups"] == 64
    assert (
        rows["roi_heads.box_head.conv1.norm"]["norm"] == "BN"
        and rows["roi_heads.box_head.conv1.norm"]["groups"] is None
    )
    mask = rows["roi_heads.mask_head.mask_fcn1.norm"]
    assert (mask["part"], mask["norm"], mask["groups"]) == ("mask head", "GN", 32)


def saved_bytes(run) -> int:
    """Return the bytes of the distinct storages that autograd saves during ``run()``."""
    storages = {}

    def pack(tensor):
        storages[StorageWeakRef(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda _: None):
        outputs = run()  # keeps the saved storages alive, so that their ids are not reused
    del outputs
    return sum(storages.values())


@pytest.mark.parametrize("name", [SMALL, C4])
def test_kept_bytes_equal_what_autograd_saves(tiny_cfg, name):
    model = build_model(tiny_cfg(name))
    matrices = sum(t.numel() * t.element_size() for t in model.parameters() if t.ndim > 1)
    parts = RCNNParts(model, 6, 3).train()
    saved = saved_bytes(lambda: parts(torch.zeros(2, 3, 64, 96)))
    kept = sum(training_memory(parts, (2, 3, 64, 96))["kept"].values())
    weights = saved - kept  # autograd also saves the weights of convolutions, fc layers, and norms
    assert 0.9 * matrices < weights < 1.02 * matrices
    on_meta = training_memory(parts.to("meta"), (2, 3, 64, 96))["kept"]
    assert sum(on_meta.values()) == kept


def test_kept_bytes_match_a_real_training_step(tiny_cfg, batch):
    """The real step has sampling and losses, which RCNNParts leaves out. Both use the same number of RoIs."""
    torch.manual_seed(1)
    model = build_model(tiny_cfg(SMALL, "MODEL.ROI_HEADS.NUM_CLASSES", 3)).train()
    rois = {}
    for name, head in (("box", model.roi_heads.box_head), ("mask", model.roi_heads.mask_head.mask_fcn1)):
        head.register_forward_pre_hook(lambda _, inputs, name=name: rois.update({name: len(inputs[0])}))
    inputs = batch(3, height=256, width=256, classes=3)
    with EventStorage():
        real = saved_bytes(lambda: model(inputs))
    parts = RCNNParts(model, rois["box"], rois["mask"]).train()
    assert saved_bytes(lambda: parts(torch.zeros(1, 3, 256, 256))) == pytest.approx(real, rel=0.02)


class TwoParts(nn.Sequential):
    def module_names(self) -> dict[str, str]:
        return {"first": "0", "second": "1"}


def test_live_storages_are_counted_once_until_they_are_freed():
    model = TwoParts(nn.Linear(10, 25, bias=False), nn.ReLU(inplace=True))
    with torch.no_grad(), LiveStorages(model) as live:
        x = torch.zeros(4, 10)  # 160 bytes, outside of both parts
        y = model(x)  # 400 bytes; the ReLU works in place
        view = y[:2].view(-1)
        assert live.bytes_by_part() == {"images": 160, "first": 400}
        z = y * 2
        assert live.bytes_by_part(exclude=[view])["first"] == 0 and live.bytes_by_part()["images"] == 160 + 400
        del x, y, view, z
        torch.zeros(1)
        assert sum(live.bytes_by_part().values()) == 0 and live.peak == 160 + 400 + 400
    assert not model[0]._forward_hooks and not model[0]._forward_pre_hooks


def test_memory_of_a_training_step(small):
    step, double = small["memory"]["training"]
    assert part(small, "images")["kept"] == 4 * 2 * 3 * 64 * 64  # the first convolution is trained
    parameters = sum(row["parameters"] for row in small["parts"])
    assert step["gradients"] == step["optimizer"] == 4 * parameters
    assert step["weights"] == step["gradients"] + 4 * buffers(SMALL)
    assert step["kept"] == sum(row["kept"] for row in small["parts"])
    assert step["peak"] > step["kept"] + step["weights"] + step["optimizer"] and step["images"] == 2
    assert double["kept"] == pytest.approx(2 * step["kept"], rel=0.001) and double["weights"] == step["weights"]
    assert 4 * parameters < small["memory"]["inference"] < step["peak"]


def buffers(name: str) -> int:
    model = RCNNParts(build_model(load_config(name, ["MODEL.DEVICE", "cpu"])), 1, 1)
    return sum(buffer.numel() for buffer in model.buffers())


def test_frozen_layers_keep_nothing_for_backward(full):
    assert "images" not in [row["part"] for row in full["parts"]]
    assert part(full, "backbone stem")["kept"] == 0 and part(full, "backbone res3")["kept"] > 0
    model = build_model(load_config(SMALL, ["MODEL.DEVICE", "cpu"])).to("meta")
    assert inference_memory(RCNNParts(model, 8, 4), (1, 3, 64, 64)) > 4 * sum(p.numel() for p in model.parameters())


def test_tables_fit_100_columns_and_list_what_is_not_counted(small, full):
    for result in (small, full):
        lines = format_analysis(result).splitlines()
        assert max(map(len, lines)) <= 100
    text = format_analysis(full)
    assert "| total               |      45.71 |       45.49 |" in text and "not counted: relu (" in text
    assert "one multiply-add counted as one FLOP" in text and "box head, 1000 RoIs" in text
    assert format_analysis(small, by_layer=True).count("| GN ") == len(small["norms"]) == 34


@pytest.mark.parametrize(
    ("text", "size"),
    [("800x1216", (800, 1216)), ("600", (600, 800)), (None, (800, 1067))],
)
def test_image_size(text, size):
    assert image_size(load_config("mask_rcnn_R50_FPN_gn"), text) == size


@pytest.mark.parametrize("text", ["800,1216", "0", "31x64", "9999x9999", "-3", "x", "1e3"])
def test_invalid_image_size_is_refused(text):
    with pytest.raises(GNDetError, match="--size is"):
        image_size(load_config(SMALL), text)


REFUSED = {
    "MODEL.META_ARCHITECTURE RetinaNet": "use one of 'GeneralizedRCNN'",
    "MODEL.KEYPOINT_ON True": "keypoints are neither trained nor evaluated",
    "MODEL.ROI_HEADS.NAME CascadeROIHeads MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True": "with CascadeROIHeads",
    "MODEL.GN.NUM_GROUPS 3": "does not divide",
}


@pytest.mark.parametrize("opts", REFUSED)
def test_unsupported_model_is_refused(opts):
    with pytest.raises(GNDetError, match=REFUSED[opts]):
        analyze(load_config(SMALL, opts.split()), (64, 64), (1,))


def test_model_without_masks(tiny_cfg):
    result = analyze(tiny_cfg(SMALL, "MODEL.MASK_ON", False), (64, 64), (1,))
    assert [row["part"] for row in result["parts"]][-2:] == ["RPN", "box head"]


@pytest.fixture
def tool(run_cli):
    """A function that runs the tool: (arguments) -> exit code, stdout, stderr."""
    return functools.partial(run_cli, "analyze_model.py")


def test_tool_prints_and_writes_the_result(tool, tmp_path):
    options = ["--size", 64, "--batch", 3, "--json", tmp_path / "a.json"]
    code, out, error = tool("--config", SMALL, *options, "MODEL.GN.NUM_GROUPS", 16)
    assert (code, error) == (0, "") and "an image of 64 x 85 pixels (padded to 64 x 96)" in out
    result = json.loads((tmp_path / "a.json").read_text())
    assert [step["images"] for step in result["memory"]["training"]] == [3] and result["norms"][0]["groups"] == 16


USER_ERRORS = {
    f"--config {SMALL} --batch 0": "--batch-size is 0; the number of images per GPU must be at least 1.",
    "--config nothing": "There is no config nothing",
    f"--config {SMALL} --size 64 --json /no/such/folder/a.json": "--json /no/such/folder/a.json cannot be written",
    f"--config {SMALL} MODEL.GN.GROUPS 3": "there is no config key MODEL.GN.GROUPS",
}


@pytest.mark.parametrize("arguments", USER_ERRORS)
def test_user_errors_are_one_sentence(tool, arguments):
    code, _, error = tool(*arguments.split())
    assert code == 2 and USER_ERRORS[arguments] in error and error.count("\n") == 1


# Weight standardization is used by mmdetection's models, of which two are analyzed.
ANALYZED = [name for name in MODELS if name.startswith(("mask_rcnn_", "quickstart_"))]
ANALYZED += ["mmdet_mask_rcnn_X50_FPN_gn_ws_2x", "mmdet_faster_rcnn_R50_FPN_gn_ws_1x"]


@pytest.mark.slow  # one takes a second, all of them take 15
@pytest.mark.parametrize("name", ANALYZED)
def test_every_shipped_model_can_be_analyzed(name):
    result = analyze(load_config(name), (64, 96), (1,))
    rows = [row for row in result["parts"] if row["part"] != "images"]
    assert all(row["parameters"] and row["flops"] and row["activations"] for row in rows)
    assert result["norms"] and max(map(len, format_analysis(result).splitlines())) <= 100
