"""gn_det's config keys, and their use in a detectron2 project."""

import logging

import pytest
from detectron2.config import get_cfg as detectron2_get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from gn_det.config.defaults import add_gn_det_config, get_cfg
from helpers.configs import flatten


def test_add_gn_det_config_only_adds_keys():
    before, cfg = flatten(detectron2_get_cfg()), detectron2_get_cfg()
    add_gn_det_config(cfg)
    after = flatten(cfg)
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
        "MODEL.GN.IGNORE_PADDING": True,
        "MODEL.GN.CONFIG": "",
        "GPU.MIXED_PRECISION": False,
        "GPU.TRAIN_WITHOUT_PADDING": False,
        "INFERENCE.BATCH_SIZE": 1,
        "INFERENCE.CHANNELS_LAST": True,
        "INFERENCE.DTYPE": "float32",
        "INFERENCE.CUDA_GRAPHS": False,
        "INFERENCE.PASTE_ON_HOST": False,
        "INFERENCE.PREFETCH": False,
    }
    assert flatten(get_cfg()) == after


# Configs of a detectron2 project that uses gn_det's parts.
PROJECTS = {
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


@pytest.mark.parametrize("kind", PROJECTS)
def test_parts_of_gn_det_run_in_a_detectron2_project(kind, stock_cfg, write_file, batch, caplog):
    """The project uses detectron2's get_cfg(), add_gn_det_config() and its own config file."""
    cfg = stock_cfg(kind, "MODEL.ROI_HEADS.NUM_CLASSES", 5)
    add_gn_det_config(cfg)
    cfg.merge_from_file(write_file("project.yaml", PROJECTS[kind]))
    cfg.freeze()
    before = cfg.dump()
    with caplog.at_level(logging.WARNING, "gn_det"):
        model = build_model(cfg)
    assert "STRIDE_IN_1X1" in caplog.text
    group_sizes = {}
    for name, module in model.named_modules():
        if hasattr(module, "num_groups"):
            part = "fpn" if "fpn_" in name else ".".join(name.split(".")[:2])
            group_sizes.setdefault(part, set()).add(module.num_channels / module.num_groups)
    if kind == "FPN":
        expected = {"backbone.bottom_up": {16}, "roi_heads.box_head": {1}, "roi_heads.mask_head": {16}, "fpn": {256}}
        assert group_sizes == expected
    else:
        assert group_sizes["roi_heads.res5"] == {512, 2048}
        assert group_sizes["backbone.res4"] == {256, 1024}
    with EventStorage():
        losses = model(batch(2))
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    (found,) = model.eval()(batch(0))
    assert len(found["instances"].scores) == len(found["instances"].pred_masks)
    assert cfg.dump() == before
