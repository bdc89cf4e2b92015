"""All shipped configs: length, names, schedules, published numbers, norms and a training step."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.layers.batch_norm import FrozenBatchNorm2d
from detectron2.modeling import build_anchor_generator, build_model
from detectron2.modeling.backbone import FPN
from detectron2.utils.events import EventStorage
from torch import nn

import gn_det
from gn_det.config.checks import check_config
from gn_det.config.files import config_dir, load_config, shipped_configs
from gn_det.modeling.norm import is_norm
from gn_det.training.solver import build_optimizer
from gn_det.zoo.index import published
from helpers.configs import MODELS, flatten, make_narrow

FILES = shipped_configs()
TOP = [name for name, path in FILES.items() if path.parent == config_dir()]
PAPER = [name for name in TOP if name.startswith("mask_rcnn_")]
QUICK = [name for name in TOP if name.startswith("quickstart")]
RUNNABLE = PAPER + QUICK
ZOO = [name for name in FILES if name not in TOP and not name.startswith("Base-")]  # see also test_zoo_configs.py
ROWS = json.loads((Path(gn_det.__file__).with_name("zoo") / "published.json").read_text())["rows"]

# The norms of backbone, FPN, box head and mask head; "" is none. A C4 model has no FPN, and its box head is conv5.
NORMS = {
    "mask_rcnn_R50_C4_frozenbn": ("FrozenBN", "", "FrozenBN", ""),
    "mask_rcnn_R50_C4_gn": ("GN", "", "GN", ""),
    "mask_rcnn_R50_C4_ln": ("LN", "", "LN", ""),
    "mask_rcnn_R50_FPN_frozenbn": ("FrozenBN", "", "", ""),
    "mask_rcnn_R101_FPN_frozenbn": ("FrozenBN", "", "", ""),
    "mask_rcnn_R50_FPN_frozenbn_4conv1fc": ("FrozenBN", "", "", ""),
    "mask_rcnn_R50_FPN_frozenbn_gnhead": ("FrozenBN", "", "GN", ""),
    "mask_rcnn_R50_FPN_frozenbn_bnhead": ("FrozenBN", "", "BN", ""),
    "mask_rcnn_R50_FPN_bn_4conv1fc": ("BN", "", "", ""),
    "mask_rcnn_R50_FPN_gn_gnhead": ("GN", "GN", "GN", ""),
    "mask_rcnn_R50_FPN_gn": ("GN", "GN", "GN", "GN"),
    "mask_rcnn_R50_FPN_gn_long": ("GN", "GN", "GN", "GN"),
    "mask_rcnn_R50_FPN_gn_scratch": ("GN", "GN", "GN", "GN"),
    "mask_rcnn_R101_FPN_gn": ("GN", "GN", "GN", "GN"),
    "mask_rcnn_R101_FPN_gn_long": ("GN", "GN", "GN", "GN"),
    "mask_rcnn_R101_FPN_gn_scratch": ("GN", "GN", "GN", "GN"),
    "mask_rcnn_R50_FPN_syncbn_scratch": ("SyncBN", "SyncBN", "SyncBN", "SyncBN"),
    "quickstart_R18_FPN_gn_scratch": ("GN", "GN", "GN", "GN"),
}


def test_norms_are_listed_for_each_config():
    assert set(NORMS) == set(RUNNABLE)
    assert all(name in RUNNABLE or name.startswith("Base-") for name in TOP)
    assert len(FILES) == len(list(config_dir().rglob("*.yaml"))) and len(ZOO) > 20  # no name occurs twice


# ---- files


def comment(name: str) -> str:
    """Return the comment lines at the top of a config."""
    lines = FILES[name].read_text().split("_BASE_")[0].splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines)


@pytest.mark.parametrize("name", RUNNABLE + ZOO)
def test_config_is_short(name):
    lines = [line for line in FILES[name].read_text().splitlines() if line.split("#")[0].strip()]
    assert lines[0].startswith("_BASE_: ")
    assert len(lines[1:]) <= (60 if name in QUICK else 15)


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("Base-Detectron", *QUICK)])
def test_config_repeats_no_value_of_its_base(name):
    own = yaml.safe_load(FILES[name].read_text())
    base = FILES[name].parent / own.pop("_BASE_")
    base_values = flatten(CfgNode.load_yaml_with_base(str(base)))
    assert own
    assert not [key for key, value in flatten(own).items() if base_values.get(key) == value]


@pytest.mark.parametrize("name", FILES)
def test_all_keys_are_loaded(name):
    cfg = flatten(load_config(name))
    own = flatten(yaml.safe_load(FILES[name].read_text()))
    for key in own.keys() - {"_BASE_"}:
        value = yaml.safe_load(yaml.safe_dump(own[key]))
        if isinstance(value, str) and value.startswith("("):
            value = yaml.safe_load(f"[{value.strip('(),')}]")
        assert (list(cfg[key]) if isinstance(cfg[key], tuple) else cfg[key]) == value, key


@pytest.mark.parametrize("name", RUNNABLE)
def test_config_loads_and_passes_all_checks(name):
    cfg = load_config(name)
    check_config(cfg)
    assert cfg.MODEL.MASK_ON
    assert cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    assert cfg.SOLVER.WEIGHT_DECAY_NORM == 0
    assert (cfg.MODEL.GN.NUM_GROUPS, cfg.MODEL.GN.CHANNELS_PER_GROUP, cfg.MODEL.GN.EPS) == (32, -1, 1e-5)
    assert name in QUICK or not cfg.MODEL.GN.ZERO_INIT_RESIDUAL  # the paper's detection models start from 1


# ---- names and schedules


@pytest.mark.parametrize("name", RUNNABLE)
def test_name_matches_the_model(name):
    cfg, words = load_config(name), name.split("_")
    assert f"_R{cfg.MODEL.RESNETS.DEPTH}_" in name
    assert ("scratch" in words) == (cfg.MODEL.WEIGHTS == "")
    assert "scratch" not in words or cfg.MODEL.BACKBONE.FREEZE_AT == 0
    assert ("frozenbn" in words) == (cfg.MODEL.RESNETS.NORM == "FrozenBN")
    assert ("C4" in words) == ("fpn" not in cfg.MODEL.BACKBONE.NAME)
    assert ("FPN" in words) == ("fpn" in cfg.MODEL.BACKBONE.NAME)
    norms = {"gn": "GN", "ln": "LN", "bn": "BN", "syncbn": "SyncBN", "frozenbn": "FrozenBN"}
    (backbone_norm,) = [norms[word] for word in words if word in norms]
    assert backbone_norm == cfg.MODEL.RESNETS.NORM
    head_norms = {"gnhead": "GN", "bnhead": "BN", "4conv1fc": ""}
    for word in words:
        if word in head_norms:
            assert head_norms[word] == cfg.MODEL.ROI_BOX_HEAD.NORM
            assert (cfg.MODEL.ROI_BOX_HEAD.NUM_CONV, cfg.MODEL.ROI_BOX_HEAD.NUM_FC) == (4, 1)


@pytest.mark.parametrize("name", PAPER)
def test_schedule_matches_the_name(name):
    solver = load_config(name).SOLVER
    if "C4" in name:
        expected = (360000, (240000, 320000), 8, 0.01)
    elif name.endswith(("_long", "_scratch")):
        expected = (270000, (210000, 250000), 16, 0.02)
    else:
        expected = (180000, (120000, 160000), 16, 0.02)
    assert (solver.MAX_ITER, tuple(solver.STEPS), solver.IMS_PER_BATCH, solver.BASE_LR) == expected


@pytest.mark.parametrize("name", PAPER)
def test_pretrained_weights_fit_the_config(name):
    """Depth, kind of norm, place of the stride and pixel format of the weights match the config."""
    cfg = load_config(name)
    weights, resnets = cfg.MODEL.WEIGHTS, cfg.MODEL.RESNETS
    if not weights:
        return
    assert f"R-{resnets.DEPTH}" in weights
    assert ("-GN" in weights) == (resnets.NORM in ("GN", "LN"))
    assert ("MSRA" in weights) == resnets.STRIDE_IN_1X1
    pixels = (cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    if "torchvision" in weights:
        assert pixels == ("RGB", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    else:
        assert pixels == ("BGR", [102.9801, 115.9465, 122.7717], [1.0, 1.0, 1.0])


@pytest.mark.parametrize("name", PAPER)
def test_anchors_match_detectron(name):
    """Detectron's generate_anchors.py centers anchors in (0, 0, stride - 1, stride - 1); its boxes end at x + w - 1."""
    cfg = load_config(name)
    strides = [16] if "C4" in name else [4, 8, 16, 32, 64]
    features = [ShapeSpec(stride=stride) for stride in strides]
    maps = [torch.zeros(1, 1, 2, 3) for _ in strides]
    for anchors, stride in zip(build_anchor_generator(cfg, features)(maps), strides, strict=True):
        x1, _, x2, _ = anchors.tensor[:3].unbind(1)  # the three aspect ratios of the first size
        middle = 0 + 0.5 * (stride - 1)
        widths = x2 - x1
        left, right = middle - 0.5 * (widths - 1), middle + 0.5 * (widths - 1) + 1
        torch.testing.assert_close((x1, x2), (left, right))


@pytest.mark.parametrize("name", PAPER)
def test_roi_align_matches_detectron(name):
    """Detectron's FPN configs set ROI_XFORM_SAMPLING_RATIO 2; its C4 configs leave it at 0."""
    model = load_config(name).MODEL
    box, mask = model.ROI_BOX_HEAD, model.ROI_MASK_HEAD
    assert ("ROIAlign", 0 if "C4" in name else 2) == (box.POOLER_TYPE, box.POOLER_SAMPLING_RATIO)
    assert "C4" in name or (mask.POOLER_TYPE, mask.POOLER_SAMPLING_RATIO) == ("ROIAlign", 2)


# ---- published numbers


def test_published_rows_match_the_configs():
    assert set(ROWS) == set(PAPER)
    assert all(published(name) is None for name in (*QUICK, "Base-RCNN-FPN", "", "nothing"))


@pytest.mark.parametrize("name", PAPER)
def test_comment_contains_the_published_numbers(name):
    text, row = comment(name), published(name)
    assert row == ROWS[name]
    assert set(row) == {"source", "box", "mask"}
    for kind in ("box", "mask"):
        stated = re.search(rf"{kind} AP (?:below GN, so )?(\d+\.\d)", text)
        assert (float(stated[1]) if stated else None) == (row[kind] and row[kind]["AP"])
    place = re.search(r"Table \d|[Tt]ext of Section 4\.2", text)
    assert place[0].lower() in row["source"].lower()


@pytest.mark.parametrize("name", [name for name in PAPER if ROWS[name]["mask"]])
def test_published_numbers_are_plausible_percentages(name):
    row = ROWS[name]
    for kind in ("box", "mask"):
        assert set(row[kind]) == {"AP", "AP50", "AP75"}
        assert 30 < row[kind]["AP"] < row[kind]["AP75"] < row[kind]["AP50"] < 70
    assert all(row["mask"][key] < row["box"][key] for key in ("AP", "AP50", "AP75"))


def test_ln_is_as_far_below_gn_as_in_the_paper():
    ln, gn = (ROWS[f"mask_rcnn_R50_C4_{norm}"]["box"]["AP"] for norm in ("ln", "gn"))
    assert gn - ln == pytest.approx(1.9)


# ---- models


KINDS = {"FrozenBN": FrozenBatchNorm2d, "BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm, "GN": nn.GroupNorm}


def norm_of(module: nn.Module) -> str:
    """Return the name in configs of the only kind of norm in a module; an empty string if it has none."""
    found = set()
    for norm in filter(is_norm, module.modules()):
        kinds = [name for name, kind in KINDS.items() if isinstance(norm, kind)]
        one_group = kinds == ["GN"] and norm.num_groups == 1
        assert kinds != ["GN"] or one_group or norm.num_groups == 32
        found.update(["LN"] if one_group else kinds)
    assert len(found) <= 1
    return found.pop() if found else ""


def parts(model: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """Return backbone, FPN, box head (C4: conv5) and mask head."""
    backbone, heads = model.backbone, model.roi_heads
    fpn = nn.Module()
    if isinstance(backbone, FPN):
        fpn = nn.ModuleList([*backbone.lateral_convs, *backbone.output_convs])
        backbone = backbone.bottom_up
    return backbone, fpn, heads.res5 if hasattr(heads, "res5") else heads.box_head, heads.mask_head


def assert_norms(model: nn.Module, name: str) -> None:
    assert tuple(map(norm_of, parts(model))) == NORMS[name]
    assert norm_of(model.proposal_generator) == ""
    for part, norm in zip(parts(model), NORMS[name], strict=True):
        convs = [m for n, m in part.named_modules() if isinstance(m, Conv2d) and n != "predictor"]
        assert all((conv.norm is None) == (norm == "") for conv in convs)


@pytest.mark.parametrize("name", RUNNABLE)
def test_norms_of_the_model_in_full_depth(name):
    """Built on the meta device, with nothing frozen, because detectron2 turns the BN of frozen layers into FrozenBN."""
    cfg = load_config(name, ["MODEL.DEVICE", "meta", "MODEL.BACKBONE.FREEZE_AT", 0])
    with torch.device("meta"):
        model = build_model(cfg)
    assert_norms(model, name)
    resnet = parts(model)[0]
    assert len(resnet.res4) == {18: 2, 50: 6, 101: 23}[cfg.MODEL.RESNETS.DEPTH]
    assert hasattr(resnet, "res5") == ("FPN" in name)
    if "C4" not in name:
        box = model.roi_heads.box_head
        two_fc = NORMS[name] == ("FrozenBN", "", "", "") and "4conv1fc" not in name  # Detectron's default head
        assert (len(box.conv_norm_relus), len(box.fcs)) == ((0, 2) if two_fc else (4, 1))


@pytest.mark.parametrize("name", RUNNABLE)
def test_frozen_layers(name):
    """conv1 and res2 of pre-trained models are frozen, as in Detectron; nothing with random weights may be frozen."""
    cfg = load_config(name, ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    frozen = {n.split("bottom_up.")[-1].removeprefix("backbone.").split(".")[0] for n in not_trained(model)}
    assert frozen == (set() if "scratch" in name or name == "mask_rcnn_R50_C4_ln" else {"stem", "res2"})


def not_trained(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if not p.requires_grad]


def test_configs_that_share_a_training_step_have_the_same_model(tiny_cfg):
    """Two models are the same if PyTorch prints the same layers; what it prints of a narrow model has all but the depth."""
    assert sorted([*MODELS, *(name for names in MODELS.values() for name in names)]) == sorted(RUNNABLE + ZOO)
    printed = {}
    for name in RUNNABLE + ZOO:
        with torch.device("meta"):
            printed[name] = repr(build_model(make_narrow(tiny_cfg(name, "MODEL.DEVICE", "meta"))))
    assert len({printed[name] for name in MODELS}) == len(MODELS)
    for first, others in MODELS.items():
        assert all(printed[name] == printed[first] for name in others), first


@pytest.mark.parametrize("name", MODELS)
def test_one_training_step(name, tiny_cfg, batch):
    """Forward, backward and an optimizer step of a narrow model, with random weights and nothing frozen."""
    cfg = make_narrow(tiny_cfg(name))
    model = build_model(cfg).train()
    if name in NORMS:  # those of the others are tested in test_zoo_configs.py
        assert_norms(model, name)
    optimizer = build_optimizer(cfg, model)
    before = {p: p.detach().clone() for p in model.parameters()}
    assert not not_trained(model)
    with EventStorage():
        losses = model(batch(2, 1, classes=3))
    masks = {"loss_mask"} if cfg.MODEL.MASK_ON else set()
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"} | masks
    assert all(loss.isfinite() for loss in losses.values()), losses
    sum(losses.values()).backward()
    for n, p in model.named_parameters():
        assert p.grad is not None and bool(p.grad.isfinite().all()), n
    optimizer.step()
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(before)
    for group in optimizer.param_groups:
        for p in group["params"]:
            step = group["lr"] * (p.grad + group["weight_decay"] * before[p])
            torch.testing.assert_close(p.detach(), before[p] - step)
    assert sum(not torch.equal(p, old) for p, old in before.items()) > 0.75 * len(before)


@pytest.mark.parametrize("name", RUNNABLE + ZOO)
def test_optimizer_has_each_parameter_once(name):
    cfg = load_config(name, ["MODEL.DEVICE", "meta", "MODEL.BACKBONE.FREEZE_AT", 0])
    with torch.device("meta"):
        model = build_model(cfg)
    assert not not_trained(model)
    optimized = [p for group in build_optimizer(cfg, model).param_groups for p in group["params"]]
    assert len(optimized) == len(set(optimized)) and set(optimized) == set(model.parameters())
