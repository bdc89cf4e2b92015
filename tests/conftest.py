"""Fixtures for all tests: fixed seed, small configs and models, synthetic images, tools, and downloads without a network."""

import runpy
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances

from gn_det import model_zoo
from gn_det.checkpoint.checkpointer import build_checkpointer
from gn_det.config.files import load_config
from gn_det.launch.tool import run_tool
from helpers.configs import SMALL, STOCK
from helpers.faulty_server import serve
from helpers.paths import TOOLS
from helpers.signals import heed_signals

heed_signals()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny_cfg():
    """Function of (path or shipped name of a config, overrides): returns that config, made small by SMALL."""

    def make(name: str, *opts) -> CfgNode:
        cfg = load_config(name)
        cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(SMALL)))
        cfg.merge_from_list(list(opts))
        return cfg

    return make


@pytest.fixture
def stock_cfg():
    """Function of ("FPN" or "C4", overrides): returns a small GN Mask R-CNN config without gn_det's keys."""

    def make(kind: str, *opts) -> CfgNode:
        cfg = detectron2_get_cfg()
        for text in (SMALL, STOCK[kind]):
            cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(text)))
        cfg.merge_from_list(list(opts))
        return cfg

    return make


@pytest.fixture(scope="session")
def output_dir(tmp_path_factory) -> Path:
    """OUTPUT_DIR with the config and the final checkpoint of a small model with random weights; read only."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("output_dir")
    cfg = load_config("quickstart_R18_FPN_gn_scratch")
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(SMALL)))
    cfg.merge_from_list(["INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 128, "OUTPUT_DIR", str(folder)])
    model = build_model(cfg)
    # Scores from about 0 to 1.
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.3)
    build_checkpointer(cfg, model, cfg.DATASETS.TRAIN).save("model_final")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


class Downloads(dict):
    """Files by URL, instead of a network.

    Attributes:
        asked: (URL, sha256, size) of each call of ``fetch``.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.folder, self.asked = folder, []

    def fetch(self, url: str, *, sha256: str = "", size: int = 0) -> Path:
        self.asked.append((url, sha256, size))
        return self[url]

    def put(self, url: str, content: bytes) -> Path:
        """Store the content of a URL, or of an entry of the zoo, and return the path of the file."""
        url = url if "://" in url else model_zoo.get_entry(url).urls[0]
        self[url] = self.folder / unquote(url.rsplit("/", 1)[1])
        self[url].write_bytes(content)
        return self[url]


@pytest.fixture
def downloads(monkeypatch, tmp_path) -> Downloads:
    """Files that are returned instead of downloads."""
    fake = Downloads(tmp_path)
    for module in ("zoo.index", "checkpoint.uri", "evaluation.published_detections"):
        monkeypatch.setattr(f"gn_det.{module}.fetch", fake.fetch)
    return fake


@pytest.fixture
def batch():
    """Function of the number of objects of each image: returns inputs of a model.

    The images are noise around PIXEL_MEAN; the masks are the boxes.
    """

    def make(*objects: int, height: int = 96, width: int = 128, classes: int = 5) -> list[dict]:
        return [_sample(number, height, width, classes) for number in objects]

    return make


def _sample(objects: int, height: int, width: int, classes: int) -> dict:
    corner = torch.rand(objects, 2) * torch.tensor([width, height]) * 0.4
    boxes = torch.cat([corner, corner + 20 + torch.rand(objects, 2) * 20], dim=1)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.randint(classes, (objects,))
    masks = torch.zeros(objects, height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    instances.gt_masks = BitMasks(masks)
    image = 115 + 10 * torch.randn(3, height, width)
    return {"image": image, "height": height, "width": width, "instances": instances}


@pytest.fixture
def run_cli(monkeypatch, capsys):
    """Function of (file name of a tool, arguments): runs it in this process; returns exit code, stdout and stderr."""

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            code = run_tool(runpy.run_path(str(TOOLS / name))["cli"]) or 0
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def server():
    """A running server of ``helpers.faulty_server``."""
    with serve() as server:
        yield server


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Empty download cache, without a mirror and with short pauses between retries."""
    for name in ("GN_DET_MIRROR", "GN_DET_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("gn_det.download.transfer.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("gn_det.download.transfer.LONGEST_PAUSE", 0.1)
    monkeypatch.setattr("gn_det.download.transfer.READ_TIMEOUT", 5.0)
    return tmp_path / "cache" / "gn_det"
