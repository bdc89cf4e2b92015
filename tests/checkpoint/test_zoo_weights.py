"""Synthetic weights with the names and shapes of each model zoo entry, in the model of its config."""

import functools

import pytest
import torch
from detectron2.modeling import build_model

from gn_det import GNDetError
from gn_det.checkpoint import convert, place
from gn_det.checkpoint.checkpointer import Checkpointer
from gn_det.checkpoint.fit import compare, find_problem
from gn_det.checkpoint.recipe import contradiction
from gn_det.config.files import load_config, shipped_configs
from gn_det.zoo import index as model_zoo
from helpers.foreign import (
    detectron2_state,
    detectron_blobs,
    detectron_imagenet,
    detectron_training,
    mmdet_state,
    timm_resnet50_gn,
)

NAMES = model_zoo.names()


def published(name: str) -> dict:
    """Return a synthetic state dict like that in the file of an entry."""
    entry, masks = model_zoo.get_entry(name), "faster" not in name
    depth, norm = 101 if "101" in name else 50, "affine" if "frozenbn" in name else "gn"
    if entry.kind == "backbone":
        return timm_resnet50_gn() if entry.origin == "timm" else detectron_imagenet(depth, norm)
    if entry.origin == "Detectron":
        head = "2fc" if norm == "affine" else "4conv1fc"
        return detectron_training(detectron_blobs(depth, "FPN" in name, norm, head), norm)
    if entry.origin == "detectron2":
        return detectron2_state(depth, norm=norm) | {"pixel_mean": torch.zeros(3, 1, 1)}
    return mmdet_state(2, depth, norm, masks=masks, paths=32 if "_X" in name else 1)


@functools.cache
def model(config: str):
    """Build the model of a config on the meta device."""
    with torch.device("meta"):
        return build_model(load_config(config, ["MODEL.DEVICE", "meta"]))


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_used_and_none_is_missing(name):
    entry = model_zoo.get_entry(name)
    network = model(entry.config)
    converted = convert(published(name))
    assert not converted.leftover and converted.backbone_only == (entry.kind == "backbone")
    weights = place(converted.weights, network.state_dict())
    fit = compare(weights, network.state_dict())
    assert not fit.unexpected and not fit.reshaped
    assert fit.exact or (entry.kind == "backbone" and fit.backbone_only)
    assert find_problem(fit, weights, network, complete=entry.kind == "detector") is None


@pytest.mark.parametrize(
    ("weights", "config", "text"),
    [
        (
            "mask_rcnn_R50_FPN_gn",
            "mask_rcnn_R50_FPN_frozenbn",
            "they have a norm without statistics (GN) where the model has Frozen",
        ),
        (
            "mask_rcnn_R50_FPN_frozenbn",
            "mask_rcnn_R50_FPN_gn",
            "they have BN* folded into scale and shift where the model has Group",
        ),
        ("R50_GN", "mask_rcnn_R50_FPN_bn_4conv1fc", "they have a norm without statistics (GN) where the model has"),
        ("mask_rcnn_R101_FPN_gn", "mask_rcnn_R50_FPN_gn", "they are for a ResNet-101, but the model has a ResNet-50"),
        (
            "mask_rcnn_R50_FPN_gn",
            "mask_rcnn_R50_FPN_gn_gnhead",
            "they have a norm where the model has none (layers: mask head 4)",
        ),
        ("mask_rcnn_R50_C4_frozenbn", "mask_rcnn_R50_FPN_frozenbn", "they lack "),
    ],
)
def test_published_weights_in_the_wrong_model_are_a_problem(weights, config, text):
    network = model(config)
    placed = place(convert(published(weights)).weights, network.state_dict())
    assert text in find_problem(compare(placed, network.state_dict()), placed, network).text


@pytest.mark.parametrize("config", shipped_configs())
def test_the_recipe_of_initial_weights_agrees_with_the_config(config):
    cfg = load_config(config)
    entry = model_zoo.entry_of(cfg.MODEL.WEIGHTS) if cfg.MODEL.WEIGHTS else None
    difference = contradiction(entry.recipe, cfg) if entry else None
    assert (difference is not None) == ("recipe" in cfg.MODEL.GN.ACCEPT_WEIGHTS), difference


@pytest.mark.parametrize("name", ["mask_rcnn_R50_FPN_gn", "mmdet_mask_rcnn_R50_FPN_gn_ws_2x", "timm_R50_GN"])
def test_a_file_of_full_size_is_loaded(name, tmp_path, monkeypatch):
    """The file is loaded with the recipe of the zoo, and refused by a config with another recipe."""
    file = tmp_path / "file.pth"
    torch.save({key: value.float().contiguous() for key, value in published(name).items()}, file)
    monkeypatch.setattr(model_zoo, "get_weights", lambda name: file)
    entry = model_zoo.get_entry(name)
    cfg = load_config(entry.config, ["MODEL.DEVICE", "cpu"])
    network = build_model(cfg)
    Checkpointer(network, cfg=cfg, trains=entry.kind == "backbone").load(f"gn_det://{name}", checkpointables=[])
    weights = place(convert(published(name)).weights, network.state_dict())
    assert all(torch.equal(network.state_dict()[key], value) for key, value in weights.items() if "num_b" not in key)
    cfg.INPUT.FORMAT = {"BGR": "RGB", "RGB": "BGR"}[cfg.INPUT.FORMAT]
    with pytest.raises(GNDetError, match=f"they were trained with images in {entry.recipe['format']}, but"):
        Checkpointer(network, cfg=cfg).load(f"gn_det://{name}", checkpointables=[])
