"""check_config: each refusal of a model, solver or dataset. See test_training_options.py for the section TRAIN."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY

from gn_det.config.checks import check_config
from gn_det.config.files import load_config, shipped_configs
from gn_det.modeling.norm import NORM_KEYS
from helpers.errors import error_sentence

RUNNABLE = [name for name in shipped_configs() if not name.startswith("Base-")]
GN_FPN, GN_C4, FROZEN = "mask_rcnn_R50_FPN_gn", "mask_rcnn_R50_C4_gn", "mask_rcnn_R50_FPN_frozenbn"
SCRATCH, QUICK = "mask_rcnn_R50_FPN_gn_scratch", "quickstart_R18_FPN_gn_scratch"


@pytest.mark.parametrize("name", RUNNABLE)
def test_shipped_configs_are_accepted(name):
    check_config(load_config(name))


def sentence_for(name: str, *opts, **kwargs) -> str:
    """Return the error sentence of check_config for a config with overrides."""
    cfg = load_config(name)
    cfg.merge_from_list(list(opts))
    return error_sentence(check_config, cfg, **kwargs)


@pytest.mark.parametrize("key", NORM_KEYS)
def test_refuses_an_unknown_norm_anywhere(key):
    assert sentence_for(GN_FPN, key, "GNN").startswith(
        f"{key} is 'GNN', which is not a known norm (did you mean 'GN'?)"
    )


def test_refuses_both_or_neither_group_key():
    both = sentence_for(GN_FPN, "MODEL.GN.CHANNELS_PER_GROUP", 16)
    assert "NUM_GROUPS is 32 and MODEL.GN.CHANNELS_PER_GROUP is 16" in both
    neither = sentence_for(GN_FPN, "MODEL.GN.NUM_GROUPS", -1)
    assert "NUM_GROUPS is -1 and MODEL.GN.CHANNELS_PER_GROUP is -1" in neither


@pytest.mark.parametrize("eps", [0.0, -1.0])
def test_refuses_eps_that_is_not_above_0(eps):
    assert f"MODEL.GN.EPS is {eps}; it must be above 0" in sentence_for(GN_FPN, "MODEL.GN.EPS", eps)


@pytest.mark.parametrize("key", ["NUM_GROUPS", "CHANNELS_PER_GROUP", "EPS"])
def test_refuses_group_keys_without_a_value(key):
    """A user may write ``CHANNELS_PER_GROUP: null`` to turn the key off, and yacs accepts it."""
    assert f"MODEL.GN.{key} is None" in sentence_for(GN_FPN, f"MODEL.GN.{key}", None)


# norm key -> (key that names the part, detectron2's part, gn_det's part)
STOCK_PART = {
    "MODEL.RESNETS.NORM": ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "build_gn_resnet_fpn_backbone"),
    "MODEL.FPN.NORM": ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "build_gn_resnet_fpn_backbone"),
    "MODEL.ROI_BOX_HEAD.NORM": ("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "FastRCNN4Conv1FCGNHead"),
    "MODEL.ROI_MASK_HEAD.NORM": ("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead", "MaskRCNNConvUpsampleGNHead"),
}
CHANGED_KEYS = [
    ["MODEL.GN.NUM_GROUPS", 16],
    ["MODEL.GN.NUM_GROUPS", -1, "MODEL.GN.CHANNELS_PER_GROUP", 8],
    ["MODEL.GN.EPS", 1e-3],
]


@pytest.mark.parametrize("key", STOCK_PART)
@pytest.mark.parametrize("norm", ["LN", "IN"])
def test_refuses_stock_parts_with_norms_that_they_lack(key, norm):
    name_key, stock, gn_det_part = STOCK_PART[key]
    others = [opt for other in NORM_KEYS for opt in (other, "BN")]
    sentence = sentence_for(GN_FPN, *others, key, norm, name_key, stock)
    assert sentence.startswith(f"{key} is {norm}, which {name_key} {stock!r} does not implement")
    assert sentence.endswith(f"set {name_key} to {gn_det_part}.")
    cfg = load_config(GN_FPN, [*others, key, norm, name_key, gn_det_part])
    check_config(cfg)


@pytest.mark.parametrize("key", STOCK_PART)
@pytest.mark.parametrize("changed", CHANGED_KEYS)
def test_refuses_stock_parts_with_changed_groups(key, changed):
    name_key, stock, gn_det_part = STOCK_PART[key]
    others = [opt for other in NORM_KEYS for opt in (other, "BN")]
    sentence = sentence_for(GN_FPN, *others, key, "GN", name_key, stock, *changed)
    assert sentence.startswith(f"{key} is GN with changed MODEL.GN keys, which {name_key} {stock!r} does not implement")
    # With the default keys, GN in the stock parts is that of the paper.
    check_config(load_config(GN_FPN, [key, "GN", name_key, stock]))


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "FrozenBN", ""])
def test_accepts_stock_parts_with_stock_norms(norm):
    stock = [opt for name_key, name, _ in STOCK_PART.values() for opt in (name_key, name)]
    opts = [opt for key in NORM_KEYS for opt in (key, norm)]
    check_config(load_config(GN_FPN, [*stock, *opts, *CHANGED_KEYS[0]]))


def test_ignores_fpn_norm_of_a_model_without_fpn():
    check_config(load_config(GN_C4, ["MODEL.FPN.NORM", "LN"]))


@pytest.mark.parametrize("opts", [["MODEL.RESNETS.NORM", "LN"], ["MODEL.RESNETS.NORM", "IN"], *CHANGED_KEYS])
def test_refuses_stock_c4_head_with_norms_that_it_lacks(opts):
    """Its conv5 would silently have detectron2's per-pixel LayerNorm, or GN with 32 groups and eps 1e-5."""
    sentence = sentence_for(GN_C4, "MODEL.ROI_HEADS.NAME", "Res5ROIHeads", *opts)
    assert "MODEL.ROI_HEADS.NAME" in sentence
    assert "Res5GNROIHeads" in sentence


def test_refuses_an_unknown_depth():
    sentence = sentence_for(GN_FPN, "MODEL.RESNETS.DEPTH", 51)
    assert sentence == "MODEL.RESNETS.DEPTH is 51; it must be one of 18, 34, 50, 101, 152."


@pytest.mark.parametrize("depth", [18, 34])
def test_refuses_shallow_resnets_with_the_width_of_deep_ones(depth):
    sentence = sentence_for(GN_FPN, "MODEL.RESNETS.DEPTH", depth)
    assert sentence == f"MODEL.RESNETS.RES2_OUT_CHANNELS is 256; it must be 64 for DEPTH {depth}."
    check_config(load_config(GN_FPN, ["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]))


@pytest.mark.parametrize("name", [GN_FPN, GN_C4])
def test_refuses_the_stride_on_the_1x1(name):
    sentence = sentence_for(name, "MODEL.RESNETS.STRIDE_IN_1X1", True)
    assert "STRIDE_IN_1X1 is True" in sentence
    assert "build_gn_resnet" in sentence
    assert sentence.endswith("set it to False.")


def test_accepts_the_stride_on_the_1x1_in_stock_and_in_shallow_backbones():
    check_config(load_config(FROZEN, ["MODEL.RESNETS.STRIDE_IN_1X1", True]))
    check_config(load_config(QUICK, ["MODEL.RESNETS.STRIDE_IN_1X1", True]))


def test_ignores_the_depth_of_a_backbone_that_is_no_resnet(monkeypatch):
    cfg = load_config(FROZEN, ["MODEL.BACKBONE.NAME", "build_vovnet_fpn_backbone", "MODEL.RESNETS.DEPTH", 57])
    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, "build_vovnet_fpn_backbone", object)
    check_config(cfg)


@pytest.mark.parametrize("freeze_at", [1, 2])
def test_refuses_to_freeze_random_layers(freeze_at):
    sentence = sentence_for(SCRATCH, "MODEL.BACKBONE.FREEZE_AT", freeze_at)
    assert f"MODEL.WEIGHTS is empty and MODEL.BACKBONE.FREEZE_AT is {freeze_at}" in sentence
    assert "3.3 box AP" in sentence  # 39.5 - 36.2
    assert "set FREEZE_AT to 0" in sentence


@pytest.mark.parametrize("key", NORM_KEYS)
def test_refuses_frozen_bn_without_weights(key):
    sentence = sentence_for(SCRATCH, key, "FrozenBN")
    assert sentence.startswith(f"{key} is FrozenBN and MODEL.WEIGHTS is empty")
    assert "set MODEL.WEIGHTS, use GN, or" in sentence


@pytest.mark.parametrize("steps", [(4, 4), (6, 5), (0, 5), (5, 9)])
def test_steps_must_increase_and_end_before_training(steps):
    assert "SOLVER.STEPS is" in sentence_for(SCRATCH, "SOLVER.STEPS", steps, "SOLVER.MAX_ITER", 9)
    check_config(load_config(SCRATCH, ["SOLVER.STEPS", "(5, 8, 12)", "SOLVER.MAX_ITER", "9"]))


def test_frozen_bn_from_scratch_can_be_allowed():
    sentence_for(SCRATCH, "MODEL.RESNETS.NORM", "FrozenBN")
    cfg = load_config(SCRATCH, ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.GN.FROZENBN_FROM_SCRATCH", "True"])
    check_config(cfg)


@pytest.mark.parametrize("opts", [["MODEL.BACKBONE.FREEZE_AT", 2], ["MODEL.RESNETS.NORM", "FrozenBN"]])
def test_checks_for_training_from_scratch_are_skipped_with_a_checkpoint(opts):
    cfg = load_config(SCRATCH, opts)
    error_sentence(check_config, cfg)
    check_config(cfg, has_checkpoint=True)


def test_other_checks_are_not_skipped_with_a_checkpoint():
    sentence_for(SCRATCH, "MODEL.RESNETS.NORM", "GNN", has_checkpoint=True)
    sentence_for(SCRATCH, "SOLVER.MAX_ITER", 0, has_checkpoint=True)


@pytest.mark.parametrize("opts", [["SOLVER.MAX_ITER", 0], ["DATASETS.TRAIN", ()], ["DATASETS.TRAIN", ("nothing",)]])
def test_checks_of_the_training_are_skipped_for_evaluation(opts):
    cfg = load_config(GN_FPN, opts)
    error_sentence(check_config, cfg)
    check_config(cfg, eval_only=True)


def test_other_checks_are_not_skipped_for_evaluation():
    sentence_for(GN_FPN, "MODEL.RESNETS.NORM", "GNN", eval_only=True)
    sentence_for(GN_FPN, "DATASETS.TEST", ("nothing",), eval_only=True)
    sentence_for(SCRATCH, "MODEL.RESNETS.NORM", "FrozenBN", eval_only=True)


@pytest.mark.parametrize("key", ["BASE_LR", "IMS_PER_BATCH", "MAX_ITER", "CHECKPOINT_PERIOD"])
@pytest.mark.parametrize("value", [0, -1])
def test_refuses_solver_keys_that_are_not_above_0(key, value):
    value = float(value) if key == "BASE_LR" else value
    assert sentence_for(GN_FPN, f"SOLVER.{key}", value) == f"SOLVER.{key} is {value}; it must be above 0."


def test_refuses_an_empty_learning_rate():
    """yacs accepts ``BASE_LR:`` without a value."""
    assert "SOLVER.BASE_LR is None" in sentence_for(GN_FPN, "SOLVER.BASE_LR", None)


def test_refuses_proposal_files():
    assert sentence_for("mask_rcnn_R50_FPN_gn", "MODEL.LOAD_PROPOSALS", True).startswith("MODEL.LOAD_PROPOSALS is True")


def test_refuses_no_training_data():
    sentence = sentence_for(GN_FPN, "DATASETS.TRAIN", ())
    assert sentence.startswith("DATASETS.TRAIN is empty")
    assert "--train-json" in sentence


@pytest.mark.parametrize("split", ["TRAIN", "TEST"])
def test_refuses_an_unknown_data_set(split):
    sentence = sentence_for(GN_FPN, f"DATASETS.{split}", ("coco_2017_trian",))
    assert sentence.startswith("There is no dataset 'coco_2017_trian' (did you mean 'coco_2017_train'?)")
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
    sentence = sentence_for(GN_FPN, f"DATASETS.{split}", (three_classes,))
    expected = f"NUM_CLASSES is 80, but the dataset {three_classes} has 3 classes: set it to 3."
    assert sentence == f"MODEL.ROI_HEADS.{expected}"
    datasets = ["DATASETS.TRAIN", (three_classes,), "DATASETS.TEST", (three_classes,)]
    check_config(load_config(GN_FPN, [*datasets, "MODEL.ROI_HEADS.NUM_CLASSES", 3]))


@pytest.mark.parametrize("split", ["TRAIN", "TEST"])
@pytest.mark.parametrize("name", ["voc_2007_test", "lvis_v1_val", "cityscapes_fine_instance_seg_val"])
def test_refuses_datasets_of_other_metrics(split, name):
    sentence = sentence_for(GN_FPN, f"DATASETS.{split}", (name,))
    assert f"The dataset {name} has the metrics of " in sentence and "--val-json" in sentence


def test_accepts_a_data_set_without_class_names():
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


def test_refuses_to_compile_models_that_ignore_the_padding():
    compiled = ("TRAIN.COMPILE", True)
    assert "TRAIN.COMPILE is True" in sentence_for(GN_FPN, *compiled)
    cfg = load_config(GN_FPN, [*map(str, compiled), "MODEL.GN.IGNORE_PADDING", "False"])
    check_config(cfg)


@pytest.mark.parametrize("size", [0, -1, None])
def test_refuses_an_evaluation_batch_without_images(size):
    assert f"INFERENCE.BATCH_SIZE is {size}; it must be 1 or more" in sentence_for(GN_FPN, "INFERENCE.BATCH_SIZE", size)
