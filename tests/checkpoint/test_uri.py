"""The URI gn_det:// in stock detectron2, and the fit of each entry of the zoo to its config."""

import functools
import os
import pickle
import re
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.file_io import PathManager
from torch import nn

from gn_det import model_zoo
from gn_det.checkpoint import convert, place
from gn_det.config.defaults import get_cfg
from gn_det.config.files import load_config
from gn_det.errors import GNDetError
from helpers import foreign


def pickled(blobs: dict) -> bytes:
    return pickle.dumps({name: np.ascontiguousarray(value) for name, value in blobs.items()}, protocol=2)


def test_stock_detectron2_loads_a_backbone_in_its_own_names(downloads, stock_cfg):
    """A ResNet-50 of half the usual width, which stock detectron2 places by matching names."""
    source = downloads.put("R50_GN", pickled(foreign.detectron_imagenet(scale=2)))
    half = ["MODEL.RESNETS.STEM_OUT_CHANNELS", 32, "MODEL.RESNETS.RES2_OUT_CHANNELS", 128]
    half += ["MODEL.RESNETS.WIDTH_PER_GROUP", 32, "MODEL.RESNETS.OUT_FEATURES", ["res5"]]
    model = nn.ModuleDict({"backbone": build_backbone(stock_cfg("C4", *half))})
    DetectionCheckpointer(model).load("gn_det://R50_GN")
    expected = foreign.detectron2_resnet(scale=2)
    state = {name.removeprefix("backbone."): value for name, value in model.state_dict().items()}
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    (file,) = source.parent.glob("*.detectron2.pth")
    assert PathManager.get_local_path("gn_det://R50_GN") == str(file)
    with PathManager.open("gn_det://R50_GN", "rb") as opened:
        assert opened.read(2) == b"PK"


def test_a_detector_has_full_names_that_need_no_matching(downloads):
    downloads.put("mask_rcnn_R50_FPN_gn", pickled(foreign.detectron_blobs(scale=32)))
    data = torch.load(PathManager.get_local_path("gn_det://mask_rcnn_R50_FPN_gn"), weights_only=True)
    expected = foreign.detectron2_state(scale=32)
    assert data.keys() == {"model"} and data["model"].keys() == expected.keys()
    assert all(torch.equal(data["model"][name], value) for name, value in expected.items())
    largest = max(value.untyped_storage().nbytes() / value.nbytes for value in data["model"].values())
    assert largest == 1  # no storage includes removed rows of the background


def test_a_file_is_converted_once_and_again_if_the_download_changes(downloads, monkeypatch):
    source = downloads.put("R50_GN", pickled(foreign.detectron_imagenet(scale=32)))
    first = Path(PathManager.get_local_path("gn_det://R50_GN"))
    written = first.stat().st_mtime_ns
    assert Path(PathManager.get_local_path("gn_det://R50_GN")) == first and first.stat().st_mtime_ns == written
    downloads.put("R50_GN", pickled(foreign.detectron_imagenet(scale=16)))
    second = Path(PathManager.get_local_path("gn_det://R50_GN"))
    assert sorted(source.parent.iterdir()) == sorted([source, second]) and second != first
    assert torch.load(second, weights_only=True)["model"]["stem.conv1.weight"].shape[0] == 4


def test_a_hostile_pickle_is_refused_and_does_not_run(downloads, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    source = downloads.put("R50_GN", pickle.dumps({"conv1_w": Evil()}))
    with pytest.raises(GNDetError):
        PathManager.get_local_path("gn_det://R50_GN")
    assert [*tmp_path.iterdir()] == [source]


def test_unknown_tensors_are_refused(downloads, tmp_path):
    blobs = foreign.detectron_imagenet(scale=32) | {"surprise_w": torch.zeros(1)}
    source = downloads.put("R50_GN", pickled(blobs))
    with pytest.raises(GNDetError, match=r"has 1 tensors with unknown names \(for example surprise_w\)"):
        PathManager.get_local_path("gn_det://R50_GN")
    assert [*tmp_path.iterdir()] == [source]


def test_a_full_disk_gives_one_error_and_leaves_no_file(downloads, tmp_path):
    source = downloads.put("R50_GN", pickled(foreign.detectron_imagenet(scale=32)))
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(GNDetError, match="detectron2.pth cannot be written"):
            PathManager.get_local_path("gn_det://R50_GN")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [*tmp_path.iterdir()] == [source]


# ---- the fit of weights and configs


def resnext(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Turn mmdetection's ResNet into its ResNeXt 32x4d: twice as wide within a block, in 32 groups."""
    out = dict(state)
    for name in state:
        if match := re.fullmatch(r"backbone\.layer(\d)\.\d+\.(conv|gn)([123])\.(weight|bias)", name):
            planes, shape = 64 * 2 ** (int(match[1]) - 1), [*state[name].shape]
            if match[3] in "12":
                shape[0] = 2 * planes
            if match[2] == "conv" and match[3] in "23":
                shape[1] = {"2": 2 * planes // 32, "3": 2 * planes}[match[3]]
            out[name] = torch.zeros(()).expand(shape)
    return out


def kind_of(entry: model_zoo.Entry) -> tuple:
    """Return everything on which the shapes of an entry's tensors depend."""
    cfg = load_config(entry.config)
    resnets, fpn = cfg.MODEL.RESNETS, "fpn" in cfg.MODEL.BACKBONE.NAME
    return entry.origin, entry.kind, resnets.DEPTH, fpn, resnets.NORM, cfg.MODEL.MASK_ON, resnets.NUM_GROUPS


@functools.cache
def as_published(origin: str, kind: str, depth: int, fpn: bool, norm: str, masks: bool, groups: int) -> dict:
    """Return a synthetic state dict in the names of the origin."""
    if kind == "backbone":
        return foreign.timm_resnet50_gn() if origin == "timm" else foreign.detectron_imagenet(depth)
    if origin == "mmdetection 2.x":
        state = foreign.mmdet_state(2, depth, masks=masks)
        return resnext(state) if groups == 32 else state
    if origin == "detectron2":
        return foreign.detectron2_state(depth)
    gn = {"norm": "gn", "head": "4conv1fc"} if norm == "GN" else {"norm": "affine", "head": "2fc"}
    return foreign.detectron_training(foreign.detectron_blobs(depth, fpn, **gn), gn["norm"])


def model_keys(config: str) -> str:
    """Return the part of a config on which the shapes of its model can depend, as YAML."""
    cfg = load_config(config, ["MODEL.DEVICE", "meta", "MODEL.WEIGHTS", ""])
    cfg.MODEL.GN.CONFIG, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = "", [0.0] * 3, [1.0] * 3
    return cfg.MODEL.dump()


@functools.cache
def shapes(keys: str) -> dict:
    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode({"MODEL": yaml.safe_load(keys)}))
    with torch.device("meta"):
        model = build_model(cfg)
    return {name: value.shape for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", model_zoo.names())
def test_the_weights_of_an_entry_fit_its_config_exactly(name):
    """No tensor is missing or left over, and all shapes agree. A backbone has all tensors of the ResNet."""
    entry = model_zoo.get_entry(name)
    model, converted = shapes(model_keys(entry.config)), convert(as_published(*kind_of(entry)))
    assert not converted.leftover and converted.backbone_only == (entry.kind == "backbone")
    placed = place(converted.weights, model)
    expected = {n: s for n, s in model.items() if not converted.backbone_only or n.startswith("backbone.bottom_up.")}
    assert {n: value.shape for n, value in placed.items()} == expected
