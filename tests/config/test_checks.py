"""Reading of configs, the keys added to a foreign project's, and each refusal of what would go wrong in silence."""

import logging

import pytest
from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from gn_det.config.checks import check_config
from gn_det.config.defaults import add_gn_det_config, get_cfg
from gn_det.config.files import config_dir, find_config, load_config, shipped_configs
from gn_det.errors import GNDetError
from gn_det.modeling.norm import NORM_KEYS

SHIPPED = shipped_configs()
RUNNABLE = [name for name in SHIPPED if not name.startswith("Base-")]
GN_FPN, GN_C4, FROZEN = "mask_rcnn_R50_FPN_gn", "mask_rcnn_R50_C4_gn", "mask_rcnn_R50_FPN_frozenbn"
SCRATCH, QUICK = "mask_rcnn_R50_FPN_gn_scratch", "quickstart_R18_FPN_gn_scratch"


@pytest.fixture
def write(tmp_path):
    """(file name, text) -> its path as a string."""

    def make(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return make


def refusal(call, *args, **kwargs) -> str:
    """The sentence with which the call is refused."""
    with pytest.raises(GNDetError) as error:
        call(*args, **kwargs)
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


# ---- the keys that are added


def flat(node: CfgNode, prefix: str = "") -> dict:
    found = {}
    for key, value in node.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {prefix + key: value}
    return found


def test_add_gn_det_config_changes_no_key_that_is_there():
    before, cfg = flat(detectron2_get_cfg()), detectron2_get_cfg()
    add_gn_det_config(cfg)
    after = flat(cfg)
    assert {key: after[key] for key in before} == before
    new = {key: value for key, value in after.items() if key not in before}
    assert {key: value for key, value in new.items() if not key.startswith("TRAIN.")} == {
        "TEST.FAST_COCO": True,
        "MODEL.GN.NUM_GROUPS": 32,
        "MODEL.GN.CHANNELS_PER_GROUP": -1,
        "MODEL.GN.FROZENBN_FROM_SCRATCH": False,
        "MODEL.GN.WEIGHT_STANDARDIZATION": False,
        "MODEL.GN.ACCEPT_WEIGHTS": (),
        "MODEL.GN.EPS": 1e-5,
        "MODEL.GN.ZERO_INIT_RESIDUAL": False,
        "MODEL.GN.FUSE": True,
        "MODEL.GN.CONFIG": "",
        "INFERENCE.CHANNELS_LAST": True,
        "INFERENCE.DTYPE": "float32",
    }
    assert flat(get_cfg()) == after


FOREIGN = {
    "FPN": """
MODEL:
  BACKBONE: {NAME: build_gn_resnet_fpn_backbone}
  RESNETS: {NORM: GN, STRIDE_IN_1X1: True}  # detectron2's default
  FPN: {NORM: LN}
  ROI_BOX_HEAD: {NAME: FastRCNN4Conv1FCGNHead, NORM: IN, NUM_CONV: 0, NUM_FC: 2}
  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleGNHead, NORM: GN}
  GN: {NUM_GROUPS: -1, CHANNELS_PER_GROUP: 16}
""",
    "C4": """
MODEL:
  BACKBONE: {NAME: build_gn_resnet_backbone}
  RESNETS: {NORM: LN, STRIDE_IN_1X1: True}
  ROI_HEADS: {NAME: Res5GNROIHeads}
""",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_our_parts_run_in_a_project_of_detectron2(kind, stock_cfg, write, batch, caplog):
    """detectron2's get_cfg(), one call and some lines of YAML."""
    cfg = stock_cfg(kind, "MODEL.ROI_HEADS.NUM_CLASSES", 5)
    add_gn_det_config(cfg)
    cfg.merge_from_file(write("project.yaml", FOREIGN[kind]))
    cfg.freeze()
    before = cfg.dump()
    with caplog.at_level(logging.WARNING, "gn_det"):
        model = build_model(cfg)
    assert "STRIDE_IN_1X1" in caplog.text
    groups = {}
    for name, module in model.named_modules():
        if hasattr(module, "num_groups"):
            part = "fpn" if "fpn_" in name else ".".join(name.split(".")[:2])
            groups.setdefault(part, set()).add(module.num_channels / module.num_groups)
    if kind == "FPN":
        ours = {"backbone.bottom_up": {16}, "roi_heads.box_head": {1}, "roi_heads.mask_head": {16}, "fpn": {256}}
        assert groups == ours
    else:
        assert groups["roi_heads.res5"] == {512, 2048}
        assert groups["backbone.res4"] == {256, 1024}
    with EventStorage():
        losses = model(batch(2))
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    (found,) = model.eval()(batch(0))
    assert len(found["instances"].scores) == len(found["instances"].pred_masks)
    assert cfg.dump() == before


# ---- which file


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_are_found_by_path_and_by_name(name, monkeypatch, tmp_path):
    file = SHIPPED[name]
    monkeypatch.chdir(tmp_path)
    for way in (str(file), name, f"{name}.yaml", f"configs/{name}.yaml", str(file.relative_to(config_dir().parent))):
        assert find_config(way).samefile(file)
        cfg = load_config(way)
        assert name == cfg.MODEL.GN.CONFIG
        assert cfg == load_config(str(file))


def test_a_file_here_goes_before_a_shipped_one(write, monkeypatch, tmp_path):
    write(f"{GN_FPN}.yaml", "SOLVER: {MAX_ITER: 7}")
    monkeypatch.chdir(tmp_path)
    assert load_config(f"{GN_FPN}.yaml").SOLVER.MAX_ITER == 7


def test_own_file_may_stand_on_a_shipped_one(write):
    path = write("mine.yaml", f"_BASE_: {config_dir()}/{GN_FPN}.yaml\nSOLVER: {{MAX_ITER: 7}}")
    cfg = load_config(path, ["SOLVER.BASE_LR", "0.5"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.MODEL.RESNETS.NORM) == (7, 0.5, "GN")
    assert cfg.MODEL.GN.CONFIG == "mine"


def test_a_runs_config_remembers_its_name(write):
    path = write("config.yaml", load_config(GN_FPN).dump())
    assert load_config(path).MODEL.GN.CONFIG == GN_FPN


@pytest.mark.parametrize("name", ["mask_rcnn_R50_FPN_ng", "mask_rcnn_R50_FPN_gm.yaml", "configs/mask_rcnn_R50_FPN_gnn"])
def test_unknown_name_names_the_nearest(name):
    assert refusal(load_config, name).startswith(f"There is no config {name}; did you mean {GN_FPN}")


def test_those_in_sub_folders_are_among_the_near_ones():
    near = "did you mean detectron2_mask_rcnn_R50_FPN_gn_3x"
    assert near in refusal(load_config, "detectron2_mask_rcnn_R50_FPN_gn_3")


@pytest.mark.parametrize("name", ["nothing/like/it.yaml", "configs", "zzz", "elsewhere/" + GN_FPN])
def test_unknown_name_without_a_near_one(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert f"There is no config {name}" in refusal(load_config, name)


@pytest.mark.parametrize("name", ["", ".", "/", "~nobody-of-this-name/x.yaml"])
def test_names_that_can_be_no_file(name):
    assert "There is no config" in refusal(load_config, name)


# ---- what is in it


def test_unknown_key_in_a_file(write):
    path = write("a.yaml", "MODEL: {GN: {NUM_GROUP: 16}}")
    sentence = refusal(load_config, path)
    assert sentence == f"{path}: there is no config key MODEL.GN.NUM_GROUP (did you mean 'MODEL.GN.NUM_GROUPS'?)."


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("MODEL.RESNETS.NROM", "MODEL.RESNETS.NORM"),
        ("SOLVER.BASELR", "SOLVER.BASE_LR"),
        ("model.gn.eps", "MODEL.GN.EPS"),
        ("MODEL.GN.NUM_GROUP", "MODEL.GN.NUM_GROUPS"),
    ],
)
def test_unknown_key_on_the_command_line(key, meant):
    sentence = refusal(load_config, GN_FPN, [key, "1"])
    assert sentence == f"the command line: there is no config key {key} (did you mean {meant!r}?)."


def test_unknown_section_names_the_nearest_section(write):
    path = write("a.yaml", "MODLE: {GN: {NUM_GROUPS: 16}}")
    assert refusal(load_config, path) == f"{path}: there is no config key MODLE (did you mean 'MODEL'?)."


def test_unknown_key_without_a_near_one():
    sentence = refusal(load_config, GN_FPN, ["QQQQQQQQ", "1"])
    assert sentence == "the command line: there is no config key QQQQQQQQ."


@pytest.mark.parametrize("key", ["MODEL.MASK_ON.X", "SOLVER.BASE_LR.X", "MODEL.WEIGHTS.X"])
def test_a_key_below_a_value_is_unknown(key):
    assert f"there is no config key {key}" in refusal(load_config, GN_FPN, [key, "1"])


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("SOLVER.BASE_LR", "fast", "SOLVER.BASE_LR takes a value of type float, not the str fast."),
        ("SOLVER.BASE_LR", "1", "SOLVER.BASE_LR takes a value of type float, not the int 1 (write 1.0)."),
        ("MODEL.GN.NUM_GROUPS", "1.5", "MODEL.GN.NUM_GROUPS takes a value of type int, not the float 1.5."),
        ("MODEL.RESNETS.NORM", "32", "MODEL.RESNETS.NORM takes a value of type str, not the int 32."),
        ("MODEL.MASK_ON", "yes", "MODEL.MASK_ON takes a value of type bool, not the str yes."),
    ],
)
def test_value_of_the_wrong_type(key, value, expected, write):
    assert refusal(load_config, GN_FPN, [key, value]) == f"the command line: {expected}"
    section, name = key.rsplit(".", 1)
    text = f"{section.replace('.', ': {')}: {{{name}: '{value}'" + "}" * (section.count(".") + 1)
    path = write("a.yaml", text)
    assert refusal(load_config, path) == f"{path}: {expected}"


def test_a_value_for_a_section(write):
    """No dump of the section, which is what yacs says."""
    for sentence in (
        refusal(load_config, GN_FPN, ["MODEL.GN", "32"]),
        refusal(load_config, write("a.yaml", "MODEL: {GN: 32}")),
    ):
        assert "MODEL.GN" in sentence
        assert "<class" not in sentence


def test_a_section_for_a_value(write):
    sentence = refusal(load_config, write("a.yaml", "SOLVER: {BASE_LR: {A: 1}}"))
    assert "SOLVER.BASE_LR" in sentence
    assert "<class" not in sentence


def test_odd_overrides():
    sentence = refusal(load_config, GN_FPN, ["SOLVER.BASE_LR", "0.1", "SEED"])
    assert sentence == "The overrides on the command line are KEY VALUE pairs, but 'SEED' stands alone."


def test_an_option_after_the_overrides():
    sentence = refusal(load_config, GN_FPN, ["--eval-only", "SEED"])
    assert sentence == "the command line: the option --eval-only must stand before the KEY VALUE pairs."


@pytest.mark.parametrize("value", ["1e-3", "0.001"])
def test_numbers_are_read_as_people_write_them(value, write):
    assert load_config(GN_FPN, ["MODEL.GN.EPS", value]).MODEL.GN.EPS == 1e-3
    assert load_config(write("a.yaml", f"MODEL: {{GN: {{EPS: {value}}}}}")).MODEL.GN.EPS == 1e-3


@pytest.mark.parametrize("text", ["", "# a comment alone\n", "5\n", "MODEL:\n", "_BASE_:\n"])
def test_a_file_without_a_config(text, write):
    path = write("a.yaml", text)
    assert refusal(load_config, path) == f"{path}: holds no config (it is empty, or not KEY: VALUE lines)."


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n"])
def test_a_file_of_something_else(text, write):
    path = write("a.yaml", text)
    assert refusal(load_config, path) == f"{path}: holds no config (it is empty, or not KEY: VALUE lines)."


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("MODEL:\n  GN:\n    EPS: [1\n  FPN: 3\n", 4),
        ("MODEL:\n\tMASK_ON: True\n", 2),
        ("MODEL:\n  MASK_ON: True\n BACKBONE: 1\n", 3),
        ("SEED: 1\nMODEL: {A: 'x\n", 3),
    ],
)
def test_yaml_that_is_none_names_the_line(text, line, write):
    path = write("a.yaml", text)
    assert refusal(load_config, path).startswith(f"{path}, line {line} is not a plain YAML config: ")


@pytest.mark.parametrize("content", [b"MODEL:\0\n", b"# \xff\xfe\nMODEL: {}\n"])
def test_a_file_that_is_no_text(content, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    assert str(path) in refusal(load_config, str(path))


@pytest.mark.parametrize("where", ["a.yaml", "base.yaml"])
@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch {marker}']",
        "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{marker}']]",
        "!!python/object/new:os.system ['touch {marker}']",
        "!!python/name:os.system",
    ],
)
def test_python_in_yaml_does_not_run(where, value, write, tmp_path):
    marker = tmp_path / "marker"
    write("a.yaml", "_BASE_: base.yaml\n")
    write("base.yaml", "SEED: 1\n")
    write(where, "SEED: 1\nOUTPUT_DIR: " + value.format(marker=marker))
    sentence = refusal(load_config, str(tmp_path / "a.yaml"))
    assert ", line 2 is not a plain YAML config: " in sentence
    assert "python/" in sentence
    assert not marker.exists()


def test_python_on_the_command_line_does_not_run(tmp_path):
    marker = tmp_path / "marker"
    text = f"__import__('pathlib').Path('{marker}').touch()"
    assert text == load_config(GN_FPN, ["OUTPUT_DIR", text]).OUTPUT_DIR
    assert not marker.exists()


@pytest.mark.parametrize("base", ["nowhere.yaml", "/nowhere/nowhere.yaml", "[nowhere.yaml]"])
def test_missing_base(base, write, tmp_path):
    path = write("a.yaml", f"_BASE_: {base}\n")
    missing = tmp_path / base.strip("[]")  # an absolute path stays itself
    assert refusal(load_config, path) == f"{path}: its _BASE_ {missing} is not there."


def test_a_base_that_stands_on_itself(write):
    write("b.yaml", "_BASE_: a.yaml\n")
    path = write("a.yaml", "_BASE_: b.yaml\n")
    assert "_BASE_" in refusal(load_config, path)


def test_a_base_that_is_a_folder(write, tmp_path):
    path = write("a.yaml", f"_BASE_: {tmp_path}\n")
    assert str(tmp_path) in refusal(load_config, path)


# ---- check_config


@pytest.mark.parametrize("name", RUNNABLE)
def test_shipped_configs_pass(name):
    check_config(load_config(name))


def said(name: str, *opts, **kwargs) -> str:
    cfg = load_config(name)
    cfg.merge_from_list(list(opts))
    return refusal(check_config, cfg, **kwargs)


@pytest.mark.parametrize("key", NORM_KEYS)
def test_refuses_an_unknown_norm_anywhere(key):
    assert said(GN_FPN, key, "GNN").startswith(f"{key} is 'GNN', which is no norm here (did you mean 'GN'?)")


def test_refuses_both_or_neither_group_key():
    assert "NUM_GROUPS is 32 and MODEL.GN.CHANNELS_PER_GROUP is 16" in said(GN_FPN, "MODEL.GN.CHANNELS_PER_GROUP", 16)
    assert "NUM_GROUPS is -1 and MODEL.GN.CHANNELS_PER_GROUP is -1" in said(GN_FPN, "MODEL.GN.NUM_GROUPS", -1)


@pytest.mark.parametrize("eps", [0.0, -1.0])
def test_refuses_eps_that_is_not_above_0(eps):
    assert f"MODEL.GN.EPS is {eps}, and must be above 0" in said(GN_FPN, "MODEL.GN.EPS", eps)


@pytest.mark.parametrize("key", ["NUM_GROUPS", "CHANNELS_PER_GROUP", "EPS"])
def test_refuses_group_keys_without_a_value(key):
    """``CHANNELS_PER_GROUP: null`` is a likely way to say "not this one"; yacs lets it pass."""
    assert f"MODEL.GN.{key} is None" in said(GN_FPN, f"MODEL.GN.{key}", None)


STOCK_PART = {
    "MODEL.RESNETS.NORM": ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "build_gn_resnet_fpn_backbone"),
    "MODEL.FPN.NORM": ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "build_gn_resnet_fpn_backbone"),
    "MODEL.ROI_BOX_HEAD.NORM": ("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "FastRCNN4Conv1FCGNHead"),
    "MODEL.ROI_MASK_HEAD.NORM": ("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead", "MaskRCNNConvUpsampleGNHead"),
}
CHANGED = [
    ["MODEL.GN.NUM_GROUPS", 16],
    ["MODEL.GN.NUM_GROUPS", -1, "MODEL.GN.CHANNELS_PER_GROUP", 8],
    ["MODEL.GN.EPS", 1e-3],
]


@pytest.mark.parametrize("key", STOCK_PART)
@pytest.mark.parametrize("norm", ["LN", "IN"])
def test_refuses_detectron2s_parts_with_norms_that_they_lack(key, norm):
    name_key, stock, ours = STOCK_PART[key]
    others = [opt for other in NORM_KEYS for opt in (other, "BN")]
    sentence = said(GN_FPN, *others, key, norm, name_key, stock)
    assert sentence.startswith(f"{key} is {norm}, which {name_key} {stock!r} does not have")
    assert sentence.endswith(f"set {name_key} to {ours}.")
    cfg = load_config(GN_FPN, [*others, key, norm, name_key, ours])
    check_config(cfg)


@pytest.mark.parametrize("key", STOCK_PART)
@pytest.mark.parametrize("changed", CHANGED)
def test_refuses_detectron2s_parts_with_changed_groups(key, changed):
    name_key, stock, ours = STOCK_PART[key]
    others = [opt for other in NORM_KEYS for opt in (other, "BN")]
    sentence = said(GN_FPN, *others, key, "GN", name_key, stock, *changed)
    assert sentence.startswith(f"{key} is GN with MODEL.GN changed, which {name_key} {stock!r} does not have")
    check_config(load_config(GN_FPN, [key, "GN", name_key, stock]))  # unchanged, theirs is the paper's


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "FrozenBN", ""])
def test_detectron2s_parts_may_have_detectron2s_norms(norm):
    stock = [opt for name_key, name, _ in STOCK_PART.values() for opt in (name_key, name)]
    opts = [opt for key in NORM_KEYS for opt in (key, norm)]
    check_config(load_config(GN_FPN, [*stock, *opts, *CHANGED[0]]))


def test_fpn_norm_is_not_read_where_there_is_no_fpn():
    check_config(load_config(GN_C4, ["MODEL.FPN.NORM", "LN"]))


@pytest.mark.parametrize("opts", [["MODEL.RESNETS.NORM", "LN"], ["MODEL.RESNETS.NORM", "IN"], *CHANGED])
def test_refuses_detectron2s_c4_head_with_norms_that_it_lacks(opts):
    """Its conv5 would silently be detectron2's per-pixel LayerNorm, or 32 groups with eps 1e-5."""
    sentence = said(GN_C4, "MODEL.ROI_HEADS.NAME", "Res5ROIHeads", *opts)
    assert "MODEL.ROI_HEADS.NAME" in sentence
    assert "Res5GNROIHeads" in sentence


def test_refuses_a_depth_that_is_none():
    sentence = said(GN_FPN, "MODEL.RESNETS.DEPTH", 51)
    assert sentence == "MODEL.RESNETS.DEPTH is 51; there is 18, 34, 50, 101, 152."


@pytest.mark.parametrize("depth", [18, 34])
def test_refuses_shallow_resnets_with_the_width_of_deep_ones(depth):
    sentence = said(GN_FPN, "MODEL.RESNETS.DEPTH", depth)
    assert sentence == f"MODEL.RESNETS.RES2_OUT_CHANNELS is 256, and must be 64 for DEPTH {depth}."
    check_config(load_config(GN_FPN, ["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]))


@pytest.mark.parametrize("name", [GN_FPN, GN_C4])
def test_refuses_the_stride_on_the_1x1(name):
    sentence = said(name, "MODEL.RESNETS.STRIDE_IN_1X1", True)
    assert "STRIDE_IN_1X1 is True" in sentence
    assert "build_gn_resnet" in sentence
    assert sentence.endswith("set it to False.")


def test_the_stride_of_detectron2s_backbones_and_of_shallow_ones_is_not_ours_to_refuse():
    check_config(load_config(FROZEN, ["MODEL.RESNETS.STRIDE_IN_1X1", True]))
    check_config(load_config(QUICK, ["MODEL.RESNETS.STRIDE_IN_1X1", True]))


def test_backbones_that_are_no_resnet_are_not_asked_for_a_depth():
    cfg = load_config(FROZEN, ["MODEL.BACKBONE.NAME", "build_vovnet_fpn_backbone", "MODEL.RESNETS.DEPTH", 57])
    check_config(cfg)


@pytest.mark.parametrize("freeze_at", [1, 2])
def test_refuses_to_freeze_random_layers(freeze_at):
    sentence = said(SCRATCH, "MODEL.BACKBONE.FREEZE_AT", freeze_at)
    assert f"MODEL.WEIGHTS is empty and MODEL.BACKBONE.FREEZE_AT is {freeze_at}" in sentence
    assert "3.3 box AP" in sentence  # 39.5 - 36.2
    assert "set FREEZE_AT to 0" in sentence


@pytest.mark.parametrize("key", NORM_KEYS)
def test_refuses_frozen_bn_without_weights(key):
    sentence = said(SCRATCH, key, "FrozenBN")
    assert sentence.startswith(f"{key} is FrozenBN and MODEL.WEIGHTS is empty")
    assert "name weights, or take GN" in sentence


@pytest.mark.parametrize("steps", [(4, 4), (6, 5), (0, 5), (5, 9)])
def test_steps_must_rise_and_end_before_training_does(steps):
    assert "SOLVER.STEPS is" in said(SCRATCH, "SOLVER.STEPS", steps, "SOLVER.MAX_ITER", 9)
    check_config(load_config(SCRATCH, ["SOLVER.STEPS", "(5, 8, 12)", "SOLVER.MAX_ITER", "9"]))


def test_frozen_bn_from_scratch_can_be_asked_for():
    said(SCRATCH, "MODEL.RESNETS.NORM", "FrozenBN")
    cfg = load_config(SCRATCH, ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.GN.FROZENBN_FROM_SCRATCH", "True"])
    check_config(cfg)


@pytest.mark.parametrize("opts", [["MODEL.BACKBONE.FREEZE_AT", 2], ["MODEL.RESNETS.NORM", "FrozenBN"]])
def test_a_checkpoint_of_this_model_lifts_what_is_said_of_scratch(opts):
    cfg = load_config(SCRATCH, opts)
    refusal(check_config, cfg)
    check_config(cfg, has_checkpoint=True)


def test_a_checkpoint_lifts_nothing_else():
    said(SCRATCH, "MODEL.RESNETS.NORM", "GNN", has_checkpoint=True)
    said(SCRATCH, "SOLVER.MAX_ITER", 0, has_checkpoint=True)


@pytest.mark.parametrize("opts", [["SOLVER.MAX_ITER", 0], ["DATASETS.TRAIN", ()], ["DATASETS.TRAIN", ("nothing",)]])
def test_evaluation_alone_needs_no_training(opts):
    cfg = load_config(GN_FPN, opts)
    refusal(check_config, cfg)
    check_config(cfg, eval_only=True)


def test_evaluation_alone_lifts_nothing_else():
    said(GN_FPN, "MODEL.RESNETS.NORM", "GNN", eval_only=True)
    said(GN_FPN, "DATASETS.TEST", ("nothing",), eval_only=True)
    said(SCRATCH, "MODEL.RESNETS.NORM", "FrozenBN", eval_only=True)


@pytest.mark.parametrize("key", ["BASE_LR", "IMS_PER_BATCH", "MAX_ITER", "CHECKPOINT_PERIOD"])
@pytest.mark.parametrize("value", [0, -1])
def test_refuses_a_solver_that_does_nothing(key, value):
    value = float(value) if key == "BASE_LR" else value
    assert said(GN_FPN, f"SOLVER.{key}", value) == f"SOLVER.{key} is {value}, and must be above 0."


def test_refuses_a_learning_rate_left_empty():
    """``BASE_LR:`` with nothing behind it; yacs lets it pass."""
    assert "SOLVER.BASE_LR is None" in said(GN_FPN, "SOLVER.BASE_LR", None)


def test_refuses_proposals_in_pickles():
    assert said("mask_rcnn_R50_FPN_gn", "MODEL.LOAD_PROPOSALS", True).startswith("MODEL.LOAD_PROPOSALS is True")


def test_refuses_no_training_data():
    sentence = said(GN_FPN, "DATASETS.TRAIN", ())
    assert sentence.startswith("DATASETS.TRAIN is empty")
    assert "--train-json" in sentence


@pytest.mark.parametrize("split", ["TRAIN", "TEST"])
def test_refuses_an_unknown_data_set(split):
    sentence = said(GN_FPN, f"DATASETS.{split}", ("coco_2017_trian",))
    assert sentence.startswith("There is no data set 'coco_2017_trian' (did you mean 'coco_2017_train'?)")
    assert "--train-json" in sentence


@pytest.fixture
def three_classes():
    name = "test_config_three_classes"
    DatasetCatalog.register(name, lambda: [])
    MetadataCatalog.get(name).set(thing_classes=["a", "b", "c"])
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize("split", ["TRAIN", "TEST"])
def test_refuses_another_number_of_classes(split, three_classes):
    sentence = said(GN_FPN, f"DATASETS.{split}", (three_classes,))
    expected = f"NUM_CLASSES is 80, but the data set {three_classes} has 3 classes: set it to 3."
    assert sentence == f"MODEL.ROI_HEADS.{expected}"
    datasets = ["DATASETS.TRAIN", (three_classes,), "DATASETS.TEST", (three_classes,)]
    check_config(load_config(GN_FPN, [*datasets, "MODEL.ROI_HEADS.NUM_CLASSES", 3]))


def test_a_data_set_that_does_not_name_its_classes_is_taken():
    name = "test_config_unnamed_classes"
    DatasetCatalog.register(name, lambda: [])
    try:
        check_config(load_config(GN_FPN, ["DATASETS.TRAIN", (name,), "DATASETS.TEST", ()]))
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("name", [GN_FPN, SCRATCH, QUICK])
def test_check_config_changes_nothing(name):
    cfg = load_config(name)
    cfg.freeze()
    before = cfg.dump()
    check_config(cfg)
    assert cfg.dump() == before
