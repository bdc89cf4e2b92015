"""What the pages say to type, to write and to search for is right; and so are their figures."""

import ast
import re
from pathlib import Path

import detectron2.data.build
import detectron2.engine.train_loop
import detectron2.modeling.proposal_generator.proposal_utils
import fvcore.common.checkpoint
import pytest
import torch
import torch.utils.data.dataloader
from detectron2.modeling import build_model

from gn_det.config.files import config_dir, load_config
from gn_det.cost.memory import training_memory
from gn_det.cost.model import analyze
from gn_det.cost.parts import RCNNParts
from gn_det.cost.tables import format_analysis
from gn_det.modeling.norm import is_norm
from helpers.paths import REPO

PAGES = {name: (REPO / "docs" / f"{name}.md").read_text() for name in ("tools", "migrate", "troubleshooting")}


def blocks(page: str, language: str = "") -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def test_the_config_of_the_migration_makes_a_gn_model(tmp_path):
    (config,) = blocks("migrate", "yaml")
    (tmp_path / "my_bn_config.yaml").write_text(f"_BASE_: {config_dir() / 'Base-RCNN-FPN.yaml'}\n")
    (tmp_path / "gn.yaml").write_text(config)
    cfg, shipped = load_config(str(tmp_path / "gn.yaml")), load_config("mask_rcnn_R50_FPN_gn")
    cfg.MODEL.GN.CONFIG = shipped.MODEL.GN.CONFIG
    assert cfg == shipped
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    assert {type(m).__name__ for m in model.modules() if is_norm(m)} == {"GroupNorm"}
    (code,) = blocks("migrate", "python")
    space: dict = {}
    exec(code, space)
    groups = space["Trainer"].build_optimizer(cfg, model).param_groups
    assert {group["weight_decay"] for group in groups} == {0.0, 1e-4}


def test_the_sentence_on_narrow_layers_is_what_is_said():
    from gn_det import GNDetError

    cfg = load_config("mask_rcnn_R50_FPN_gn", ["MODEL.FPN.OUT_CHANNELS", "48", "MODEL.DEVICE", "cpu"])
    with pytest.raises(GNDetError) as error:
        build_model(cfg)
    assert str(error.value) in PAGES["migrate"]


def strings(path: Path) -> list[str]:
    """The strings of a program, with ... where an f-string has a value."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    joined = [node.values for node in nodes if isinstance(node, ast.JoinedStr)]
    texts = ["".join(v.value if isinstance(v, ast.Constant) else "..." for v in values) for values in joined]
    return texts + [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def quoted(section: str) -> list[str]:
    """The sentences in the headings and in the table of problems."""
    return re.findall(r"^(?:###|\|) `(.*?)`", section, re.MULTILINE)


def test_sentences_are_those_that_are_said():
    """Each piece of a sentence, between what differs, stands in a string of the program."""
    own, _ = PAGES["troubleshooting"].split("## From detectron2 and PyTorch")
    texts = [text for path in (REPO / "gn_det").rglob("*.py") for text in strings(path)]
    sentences = [*quoted(own), "... has no objects to train on."]
    assert len(sentences) > 25
    for sentence in sentences:
        for value in ("NUM_GROUPS", "float", "int 1"):  # written out, so that they are found
            sentence = sentence.replace(value, "...")
        pieces = [piece.strip(" .") for piece in re.split(r"\.\.\.|: ", sentence)]
        assert all(any(piece in text for text in texts) for piece in pieces), sentence


def test_sentences_of_others_are_those_that_they_say():
    _, upstream = PAGES["troubleshooting"].split("## From detectron2 and PyTorch")
    modules = (
        detectron2.data.build,
        detectron2.engine.train_loop,
        detectron2.modeling.proposal_generator.proposal_utils,
        fvcore.common.checkpoint,
        torch.utils.data.dataloader,
        torch.nn.functional,
    )
    source = "\n".join(text for module in modules for text in strings(Path(module.__file__)))
    sentences = [
        sentence for sentence in quoted(upstream) if not sentence.startswith(("ModuleNotFound", "torch.OutOf"))
    ]
    assert len(sentences) == 4
    for sentence in sentences:
        pieces = re.sub(r"^\w+Error: ", "", sentence).split("...")
        assert all(piece.strip("' ") in source for piece in pieces), sentence


@pytest.mark.slow
def test_the_tables_of_costs_are_what_is_measured():
    table = format_analysis(analyze(load_config("mask_rcnn_R50_FPN_gn"), (800, 1067), (1,))).split("\n\nGFLOPs")[0]
    assert table + "\n" in blocks("tools", "text")
    zoo = re.findall(r"\| (R\S+) (.*?) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", PAGES["tools"])
    names = {"BN\\*": "frozenbn", "GN": "gn", "GN, scratch": "gn_scratch", "SyncBN, scratch": "syncbn_scratch"}
    for backbone, norm, peak, published, ratio in zoo:
        name, opts = names.get(norm, "syncbn_scratch"), ["MODEL.DEVICE", "meta"]
        opts += ["MODEL.BACKBONE.FREEZE_AT", "2"] if norm == "SyncBN" else []
        cfg = load_config(f"mask_rcnn_{backbone.replace('-', '_')}_{name}", opts)
        with torch.device("meta"):
            model = build_model(cfg)
        measured = training_memory(RCNNParts(model, 512, 128), (2, 3, 800, 1344))["peak"] / 2**30
        assert f"{measured:.2f}" == peak and float(published) / measured == pytest.approx(float(ratio), abs=0.006)
    assert len(zoo) == 7
