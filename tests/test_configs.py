"""Every shipped config: small, named after what it is, beside its published numbers, and it trains."""

import json
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers.batch_norm import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.modeling.backbone import FPN
from detectron2.utils.events import EventStorage
from torch import nn

import gn_det
from gn_det.config import check_config, config_dir, load_config
from gn_det.model_zoo import published
from gn_det.norm import is_norm
from gn_det.solver import build_optimizer

FILES = {path.stem: path for path in sorted(config_dir().glob("*.yaml"))}
PAPER = [name for name in FILES if name.startswith("mask_rcnn_")]
QUICK = [name for name in FILES if name.startswith("quickstart")]
RUNNABLE = PAPER + QUICK
ROWS = json.loads(Path(gn_det.__file__).with_name("published.json").read_text())["rows"]

# Norms of backbone, FPN, box head and mask head. None: there is no such part with a norm switch.
NORMS = {
    "mask_rcnn_R50_C4_frozenbn": ("FrozenBN", None, None, None),
    "mask_rcnn_R50_C4_gn": ("GN", None, None, None),
    "mask_rcnn_R50_C4_ln": ("LN", None, None, None),
    "mask_rcnn_R50_FPN_frozenbn": ("FrozenBN", "", None, ""),
    "mask_rcnn_R101_FPN_frozenbn": ("FrozenBN", "", None, ""),
    "mask_rcnn_R50_FPN_frozenbn_4conv1fc": ("FrozenBN", "", "", ""),
    "mask_rcnn_R50_FPN_frozenbn_gnhead": ("FrozenBN", "", "GN", ""),
    "mask_rcnn_R50_FPN_frozenbn_bnhead": ("FrozenBN", "", "BN", ""),
    "mask_rcnn_R50_FPN_bn_4conv1fc": ("BN", "", "", ""),
    "mask_rcnn_R50_FPN_gn_gnhead": ("GN", "GN", "GN", ""),
    "mask_rcnn_R50_FPN_gn": ("GN",) * 4,
    "mask_rcnn_R50_FPN_gn_long": ("GN",) * 4,
    "mask_rcnn_R50_FPN_gn_scratch": ("GN",) * 4,
    "mask_rcnn_R101_FPN_gn": ("GN",) * 4,
    "mask_rcnn_R101_FPN_gn_long": ("GN",) * 4,
    "mask_rcnn_R101_FPN_gn_scratch": ("GN",) * 4,
    "mask_rcnn_R50_FPN_syncbn_scratch": ("SyncBN",) * 4,
    "quickstart_R18_FPN_gn_scratch": ("GN",) * 4,
}


def test_there_is_a_line_here_for_each():
    assert set(NORMS) == set(RUNNABLE)
    assert all(name in RUNNABLE or name.startswith("Base-") for name in FILES)


# ---- the file


@pytest.mark.parametrize("name", RUNNABLE)
def test_leaf_says_only_what_differs(name):
    lines = [line for line in FILES[name].read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert lines[0].startswith("_BASE_: ")
    assert len(lines) - 1 <= (60 if name in QUICK else 15)
    assert max(map(len, FILES[name].read_text().splitlines())) <= 130


@pytest.mark.parametrize("name", FILES)
def test_each_line_changes_something(name):
    """A leaf repeats nothing that its _BASE_ says already."""
    text = FILES[name].read_text()
    base = re.search(r"^_BASE_: (\S+)$", text, re.MULTILINE)
    if not base:
        assert name == "Base-Detectron"
        return
    before = load_config(str(FILES[name].with_name(base[1])))
    own = CfgNode.load_yaml_with_base(str(FILES[name].with_name(base[1])))
    mine = CfgNode.load_yaml_with_base(str(FILES[name]))
    assert mine != own
    for key, value in _leaves(_without_base(FILES[name])):
        assert _get(load_config(name), key) == _get(load_config(name), key)
        if _get(own, key) is not None:
            assert value != _get(own, key), f"{key} is {value} in {base[1]} already"
    assert before.VERSION == 2


def _without_base(path: Path) -> dict:
    import yaml

    return {key: value for key, value in yaml.safe_load(path.read_text()).items() if key != "_BASE_"}


def _leaves(node: dict, prefix: str = ""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _get(node, key: str):
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


@pytest.mark.parametrize("name", RUNNABLE)
def test_loads_and_passes(name):
    cfg = load_config(name)
    check_config(cfg)
    assert cfg.MODEL.GN.CONFIG == name
    assert cfg.MODEL.MASK_ON
    assert cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    assert cfg.SOLVER.WEIGHT_DECAY_NORM == 0
