"""The model zoo: entries agree with their file names and configs, and are found by name, URL and URI."""

import hashlib
import re
from urllib.parse import unquote, urlsplit

import pytest
import torch
from detectron2.utils.file_io import PathManager

import gn_det
from gn_det.config.checks import check_config
from gn_det.config.files import load_config, shipped_configs
from gn_det.errors import GNDetError
from gn_det.prediction.trained import find_trained
from gn_det.zoo import index as model_zoo

NAMES = model_zoo.names()
DETECTORS = [name for name in NAMES if model_zoo.get_entry(name).kind == "detector"]
COCO_IMAGES = 117_266  # images of train2017 that have objects


def file_name(url: str) -> str:
    return unquote(urlsplit(url).path).rsplit("/", 1)[1]


# ---- zoo.json


def test_the_zoo_has_all_entries_of_each_origin():
    count = dict.fromkeys(("Detectron", "timm", "detectron2", "mmdetection 2.x"), 0)
    for name in NAMES:
        count[model_zoo.get_entry(name).origin] += 1
    # Detectron: 2 backbones, 4 with GN, 3 with BN*. mmdetection: 6 with GN, 12 with GN and WS, 2
    # from scratch.
    assert count == {"Detectron": 9, "timm": 1, "detectron2": 3, "mmdetection 2.x": 20}


@pytest.mark.parametrize("name", NAMES)
def test_urls_are_https_urls_of_files(name):
    entry = model_zoo.get_entry(name)
    for url in (*entry.urls, *entry.detections.values()):
        parts = urlsplit(url)
        assert parts.scheme == "https" and parts.hostname and not (parts.query or parts.fragment or parts.port)
        assert re.fullmatch(r"(/[\w.,=%-]+)+", parts.path) and ".." not in unquote(url)
    assert entry.urls[0].endswith((".pkl", ".pth"))
    assert all(url.endswith(".json") for url in entry.detections.values())


def test_no_url_is_listed_twice():
    urls = [url for name in NAMES for url in model_zoo.get_entry(name).urls]
    urls += [url for name in NAMES for url in model_zoo.get_entry(name).detections.values()]
    assert len(set(urls)) == len(urls)


@pytest.mark.parametrize("name", NAMES)
def test_digests_are_those_in_the_file_name(name):
    """File names of detectron2 contain the first digits of the md5 (see its MODEL_ZOO.md).

    Those of mmdetection and timm contain the first digits of the sha256, and those of Detectron no
    digest.
    """
    entry = model_zoo.get_entry(name)
    found = re.search(r"[-_]([0-9a-f]{6,8})\.(?:pkl|pth)$", file_name(entry.urls[0]))
    if entry.origin == "Detectron":
        assert (entry.sha256, entry.md5, found) == ("", "", None)
    elif entry.origin == "detectron2":
        assert (entry.sha256, entry.md5) == ("", found[1]) and len(found[1]) == 6
    else:
        assert (entry.sha256, entry.md5) == (found[1], "") and len(found[1]) == 8
    assert entry.size == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_is_that_of_the_config(name):
    entry = model_zoo.get_entry(name)
    cfg = model_zoo.get_config(name)
    check_config(cfg)
    config_recipe = {
        "pixel_mean": [*cfg.MODEL.PIXEL_MEAN],
        "pixel_std": [*cfg.MODEL.PIXEL_STD],
        "format": cfg.INPUT.FORMAT,
        "stride_in_1x1": cfg.MODEL.RESNETS.STRIDE_IN_1X1,
        "groups": cfg.MODEL.GN.NUM_GROUPS if cfg.MODEL.RESNETS.NORM == "GN" else None,
        "eps": cfg.MODEL.GN.EPS if cfg.MODEL.RESNETS.NORM == "GN" else None,
        "weight_standardization": cfg.MODEL.GN.WEIGHT_STANDARDIZATION,
    }
    assert entry.recipe == config_recipe
    mean = entry.recipe["pixel_mean"]
    assert (mean[0] < mean[2]) == (entry.recipe["format"] == "BGR")  # on ImageNet, blue has the lowest mean


@pytest.mark.parametrize("name", DETECTORS)
def test_the_config_has_the_name_results_and_schedule_of_the_entry(name):
    entry = model_zoo.get_entry(name)
    cfg = load_config(entry.config)
    assert entry.config == name and cfg.DATASETS.TEST == ("coco_2017_val",)
    text = shipped_configs()[name].read_text().splitlines()[0]
    # The configs of Detectron's weights state the numbers of the paper instead.
    for kind in ("box", "mask") if entry.origin != "Detectron" else ():
        stated = re.search(rf"{kind} AP (\d\d\.\d)", text)
        assert (float(stated[1]) if stated else None) == entry.published[kind]
    assert cfg.MODEL.MASK_ON == (entry.published["mask"] is not None) == ("mask_rcnn" in name)
    epochs = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH / COCO_IMAGES
    times = 2 if entry.schedule == "20-23-24e" else int(entry.schedule.removesuffix("x"))
    assert epochs == pytest.approx(12 * times, rel=0.025)
    assert name.endswith("_" + entry.schedule.replace("-", "_")) or entry.origin == "Detectron"


@pytest.mark.parametrize("name", DETECTORS)
def test_the_url_agrees_with_the_name(name):
    """Depth, kind of model and schedule are in the URL, in the spelling of the origin."""
    entry, url = model_zoo.get_entry(name), model_zoo.get_entry(name).urls[0].lower()
    kind, backbone = re.search(r"(faster|mask)_rcnn_([rx])(50|101)", name.lower()).group(1, 2)
    depth = load_config(name).MODEL.RESNETS.DEPTH
    assert f"{kind}_rcnn" in url and re.search(rf"_{backbone}[-_]?{depth}[-_]", url)
    schedule = {"Detectron": f"_{entry.schedule}", "detectron2": f"_{entry.schedule}_gn"}.get(
        entry.origin, "_" + entry.schedule.replace("-", "_") + "_coco"
    )
    assert schedule in url
    assert ("frozenbn" in name) == ("_gn" not in url) and ("scratch" in name) == ("scratch" in url)
    assert ("gn_ws" in name) == ("gn_ws-all" in url) and ("contrib" in name) == ("contrib" in url)


def test_every_config_of_other_projects_has_an_entry():
    used = {model_zoo.get_entry(name).config for name in NAMES}
    configs = {n for n, path in shipped_configs().items() if path.parent.name in ("detectron2", "mmdetection", "timm")}
    assert {name for name in configs if not name.startswith("Base-")} <= used and len(configs) > 20


@pytest.mark.parametrize("name", [n for n in NAMES if model_zoo.get_entry(n).detections])
def test_detections_are_of_the_same_run(name):
    entry = model_zoo.get_entry(name)
    run = entry.urls[0].partition("/output/")[0]
    files = {"bbox": "bbox_coco_2014_minival_results.json", "segm": "segmentations_coco_2014_minival_results.json"}
    for task, file in files.items():
        assert entry.detections[task] == f"{run}/output/test/coco_2014_minival/generalized_rcnn/{file}"


# ---- looking up entries


def test_names_and_configs_need_no_network(downloads):
    for name in NAMES:
        cfg = model_zoo.get_config(name)
        entry = model_zoo.get_entry(name)
        assert f"gn_det://{name}" == cfg.MODEL.WEIGHTS and entry.config == cfg.MODEL.GN.CONFIG
        assert not cfg.is_frozen()
    assert downloads.asked == []


def test_weights_are_fetched_with_their_digest_and_size(downloads):
    file = downloads.put("timm_R50_GN", b"x")
    assert model_zoo.get_weights("timm_R50_GN") == file
    assert downloads.asked == [(model_zoo.get_entry("timm_R50_GN").urls[0], "8fe6c4d0", 0)]


def test_the_md5_of_a_file_is_verified(downloads, monkeypatch):
    name = "detectron2_mask_rcnn_R50_FPN_gn_3x"
    downloads.put(name, b"another")
    with pytest.raises(GNDetError, match=f"has the md5 .*, but the published {name} has dc5d9e: remove the file"):
        model_zoo.get_weights(name)
    digits = hashlib.md5(b"another").hexdigest()[:6]
    entry = model_zoo.get_entry(name)
    monkeypatch.setitem(model_zoo._entries(), name, type(entry)(**{**vars(entry), "md5": digits}))
    assert model_zoo.get_weights(name).read_bytes() == b"another"


@pytest.mark.parametrize("name", ["mask_rcnn_R50_FPN_gm", "../R50_GN", "", "R50_GN/../R50_GN", "zzz"])
@pytest.mark.parametrize("call", ["get_entry", "get_config", "get_weights", "get"])
def test_unknown_names_are_refused(name, call, downloads):
    with pytest.raises(GNDetError, match=f"The model zoo has no entry '{name}'") as error:
        getattr(gn_det.model_zoo, call)(name)
    assert ("did you mean 'mask_rcnn_R50_FPN_gn'?" in str(error.value)) == (name == "mask_rcnn_R50_FPN_gm")
    with pytest.raises(GNDetError, match="The model zoo has no entry"):
        PathManager.get_local_path(f"gn_det://{name}")
    assert downloads.asked == []


ENTRY_BY_WEIGHTS = {  # MODEL.WEIGHTS: entry
    "gn_det://mask_rcnn_R50_FPN_gn": "mask_rcnn_R50_FPN_gn",
    "gn_det://R50_GN?matching_heuristics=True": "R50_GN",
    "gn_det://nothing": None,
    "catalog://ImageNetPretrained/FAIR/R-50-GN": "R50_GN",
    "catalog://ImageNetPretrained/FAIR/R-101-GN": "R101_GN",
    "catalog://ImageNetPretrained/MSRA/R-50": None,
    "catalog://ImageNetPretrained/FAIR/nothing": None,
    "catalog://nothing": None,
    "catalog://Caffe2Detectron/COCO/48616381/e2e_mask_rcnn_R-50-FPN_2x_gn": "mask_rcnn_R50_FPN_gn",
    "detectron2://Misc/mask_rcnn_R_50_FPN_3x_gn/138602888/model_final_dc5d9e.pkl": "detectron2_mask_rcnn_R50_FPN_gn_3x",
    "detectron2://ImageNetPretrained/MSRA/R-50.pkl": None,
    "/models/R-50-GN.pkl": "R50_GN",
    "resnet50_gn_a1h2-8fe6c4d0.pth": "timm_R50_GN",
    "output/run/model_final.pth": None,
    "model_final.pkl": None,  # seven entries have this file name
    "my-R-50-GN.pkl": None,
    "": None,
}


@pytest.mark.parametrize("weights", ENTRY_BY_WEIGHTS)
def test_an_entry_is_found_by_weights(weights):
    found = model_zoo.entry_of(weights)
    assert (found and found.name) == ENTRY_BY_WEIGHTS[weights]


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_is_found_by_its_url_on_any_host(name):
    (url,) = model_zoo.get_entry(name).urls
    host = urlsplit(url).netloc
    spellings = [
        url,
        unquote(url),
        url.replace("https://", "http://"),
        f"{url}?matching_heuristics=True",
        f"{url}?id=1",
    ]
    spellings += [url.replace(host, "s3-us-west-2.amazonaws.com"), f"/cache/gn_det/{host}{urlsplit(url).path}"]
    assert [model_zoo.entry_of(spelling).name for spelling in spellings] == [name] * len(spellings)


def test_published_results_are_those_of_the_paper_or_of_the_entry():
    assert model_zoo.published("mask_rcnn_R50_FPN_gn")["box"] == {"AP": 40.3, "AP50": 61.0, "AP75": 44.0}
    row = model_zoo.published("mmdet_faster_rcnn_X101_FPN_gn_ws_1x")
    assert row == {"source": "mmdetection configs/gn+ws/metafile.yml", "box": {"AP": 42.1}, "mask": None}
    assert model_zoo.published("R50_GN") is None and model_zoo.published("timm_mask_rcnn_R50_FPN_gn") is None


# ---- models


def test_a_model_without_weights_needs_no_network(downloads):
    model = gn_det.model_zoo.get("mmdet_faster_rcnn_R50_FPN_gn_ws_1x", trained=False)
    assert not model.training and not model.roi_heads.mask_on and downloads.asked == []
    x = torch.zeros(1, 3, 64, 64, device=model.device)
    assert set(model.backbone(x)) == {"p2", "p3", "p4", "p5", "p6"}


def test_a_backbone_cannot_predict():
    message = "R101_GN is only a backbone and cannot predict: train mask_rcnn_R101_FPN_gn with"
    for load in (lambda: gn_det.model_zoo.get("R101_GN"), lambda: find_trained("gn_det://R101_GN")):
        with pytest.raises(GNDetError, match=message):
            load()


def test_the_uri_is_sufficient_for_the_predictor(downloads):
    cfg, names, ids = find_trained("gn_det://mmdet_mask_rcnn_X101_FPN_gn_ws_2x")
    assert cfg.MODEL.WEIGHTS == "gn_det://mmdet_mask_rcnn_X101_FPN_gn_ws_2x" and cfg.MODEL.GN.WEIGHT_STANDARDIZATION
    assert (len(names), names[0], ids[-1], cfg.MODEL.ROI_HEADS.NUM_CLASSES) == (80, "person", 90, 80)
    assert downloads.asked == []
    with pytest.raises(GNDetError, match="The model zoo has no entry 'zzz'"):
        find_trained("gn_det://zzz")
    with pytest.raises(GNDetError, match="are both weights"):
        find_trained("gn_det://mask_rcnn_R50_FPN_gn", "other.pth")
