"""Every command of README and docs is run once, cut down to a step, in a folder that has the files they name.

bash blocks are commands, python blocks programs, yaml blocks configs. A bash block below ``<!-- not run -->`` is only
parsed: it needs the network, COCO or several machines.
"""

import contextlib
import importlib
import io
import json
import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import traceback
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

from gn_det import get_cfg
from gn_det.data import shapes
from gn_det.launch import tool as tool_module
from helpers.paths import REPO

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
# A step of the shipped models in seconds, without weights that would have to be fetched.
SMALL = """MODEL.WEIGHTS '' MODEL.BACKBONE.FREEZE_AT 0 MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64
    MODEL.FPN.OUT_CHANNELS 64 MODEL.ROI_BOX_HEAD.CONV_DIM 64 MODEL.ROI_BOX_HEAD.FC_DIM 64
    MODEL.RPN.PRE_NMS_TOPK_TEST 50 MODEL.RPN.POST_NMS_TOPK_TEST 5 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 4
    INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64 SOLVER.STEPS () SOLVER.MAX_ITER 1 DATALOADER.NUM_WORKERS 0"""


NOT_RUN = "<!-- not run -->\n"


def blocks(language: str) -> list[tuple[str, str]]:
    """The page and the text of each fenced block of a language; "not run" is that of marked bash blocks."""
    fence = re.compile(rf"^({NOT_RUN})?```(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    found = [(page.name, match) for page in PAGES for match in fence.findall(page.read_text())]
    return [(page, text) for page, (mark, kind, text) in found if ("not run" if mark else kind) == language]


def commands() -> list:
    """The page and the words of each distinct command. Those of README and the quick start run in every test run."""
    found = {}
    for page, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            if words := tuple(word.removeprefix(".venv/bin/") for word in shlex.split(line, comments=True)):
                found.setdefault(words[1:] if words[0] == "python" else words, page)
    marks = {page: () if page in ("README.md", "quick_start.md") else pytest.mark.slow for page in found.values()}
    return [
        pytest.param(page, words, marks=marks[page], id=f"{page}-{' '.join(words)[:60]}")
        for words, page in found.items()
    ]


def in_a_fork(work: Callable[[], object]) -> str:
    """Do it in a process of its own that need not import everything anew; returns what it printed."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_work, args=(work, sender))
    process.start()
    failure, printed = receiver.recv()
    process.join()
    assert not failure, f"{failure}\n{printed[-3000:]}"
    return printed


def _work(work: Callable[[], object], sender) -> None:
    torch.set_num_threads(1)  # OpenMP does not survive a fork
    failure, printed = "", io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            work()
        except SystemExit as end:
            failure = f"exit code {end.code}" if end.code else ""
        except BaseException:
            failure = traceback.format_exc()
    sender.send((failure, printed.getvalue()))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """What the docs take for granted: train.json, val.json, images, a COCO of two images, and nothing trained."""
    root = tmp_path_factory.mktemp("docs")
    shapes.generate(root / "made", num_train=4, num_val=1, seed=1, size=96)
    shutil.move(root / "made" / "train", root / "images")
    train = json.loads((root / "made" / "train.json").read_text())
    (root / "train.json").write_text(json.dumps(train))
    shutil.copytree(root / "images", root / "photos")
    picture = Image.open(root / "images" / train["images"][0]["file_name"]).convert("RGB")
    picture.save(root / "photo.jpg")
    video = cv2.VideoWriter(str(root / "holiday.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5, picture.size)
    for _ in range(2):
        video.write(np.asarray(picture)[:, :, ::-1].copy())
    video.release()
    few = {row["id"] for row in train["images"][:2]}
    val = train | {"images": [row for row in train["images"] if row["id"] in few]}
    val["annotations"] = [row for row in train["annotations"] if row["image_id"] in few]
    (root / "val.json").write_text(json.dumps(val))
    shutil.copy(root / "val.json", root / "instances_val2017.json")
    rows = [{k: row[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.5} for row in val["annotations"]]
    (root / "results.json").write_text(json.dumps(rows))
    coco = root / "datasets" / "coco"
    (coco / "annotations").mkdir(parents=True)
    things = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    for split in ("train2017", "val2017"):
        (coco / "annotations" / f"instances_{split}.json").write_text(json.dumps(val | {"categories": things}))
        shutil.copytree(root / "images", coco / split)
    config = re.findall(r"^```yaml\n(.*?)^```", (REPO / "docs/parts.md").read_text(), re.DOTALL | re.MULTILINE)[0]
    (root / "my_config.yaml").write_text(config)
    return root


@pytest.fixture(scope="module")
def trained(files) -> Path:
    """A run of one step on these files, with an evaluation."""
    data = "--train-json train.json --train-images images --val-json val.json --val-images images"
    words = f"tools/train_net.py --config quickstart_R18_FPN_gn_scratch {data} OUTPUT_DIR trained".split()
    in_a_fork(lambda: run_command(words, files))
    return files / "trained"


def run_command(words: Sequence[str], folder: Path) -> None:
    """Run a command of the docs in ``folder``, in this process and cut down to a step."""
    tool, *words = words
    if tool == "torchrun":  # its one process is this one
        tool, *words = words[[Path(word).suffix for word in words].index(".py") :]
    if tool == "gn-det":
        tool, *words = words
        sys.argv = [f"gn-det {tool}"]
        run = importlib.import_module(f"gn_det.cli.{tool}").cli
    else:
        sys.argv = [str(REPO / tool)]
        run = runpy.run_path(sys.argv[0])["cli"]
    if "--num-gpus" in words:
        words[words.index("--num-gpus") + 1] = "1"
    if "--norms" in words:  # one training for all
        words[words.index("--norms") + 1], words[words.index("--batch-size") + 1] = "BN*", "4"
    if run.__module__.endswith("analyze"):
        words[:0] = [] if "--size" in words else ["--size", "64"]
    if run.__module__.endswith(("train", "norms")):
        words += shlex.split(SMALL)
    os.chdir(folder)
    os.environ["DETECTRON2_DATASETS"] = str(folder / "datasets")
    sys.argv += words
    tool_module.run_tool(run)


def prepare_outputs(words: Sequence[str], trained: Path) -> None:
    """Put a finished run where a command reads one, and remove what lies where it writes one."""
    trains = (
        not {"tools/train_net.py", "train", "tools/compare_norms.py"}.isdisjoint(words) and "--eval-only" not in words
    )
    if trains and "OUTPUT_DIR" not in words:
        words = [*words, "OUTPUT_DIR", "output"]
    for before, word in zip(["", *words], words, strict=False):
        if before in ("--out", "--json"):
            shutil.rmtree(trained.parent / word, ignore_errors=True)
            (trained.parent / word).unlink(missing_ok=True)
        path = Path(word.rpartition("=")[2])
        if path.parts[:1] not in (("output",), ("results",)):
            continue
        place = trained.parent / Path(*path.parts[:2])
        shutil.rmtree(place, ignore_errors=True)
        if not trains:
            shutil.copytree(trained, place)


def test_the_documents_have_commands():
    assert len(commands()) >= 20


@pytest.mark.parametrize(("page", "words"), commands())
def test_command_runs(page, words, files, trained):
    if words[0] == "make":
        assert re.search(f"^{words[1]}:", (REPO / "Makefile").read_text(), re.MULTILINE)
        return
    prepare_outputs(words, trained)
    in_a_fork(lambda: run_command(words, files))


@pytest.mark.slow
@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_programs_run(page, text, files, trained):
    def work():
        prepare_outputs(["output/mine"], trained)
        os.chdir(files)
        shutil.rmtree("output/own_project", ignore_errors=True)
        short = (files / "my_config.yaml").read_text()
        short = re.sub(r"MAX_ITER: \d+, STEPS: \[.*?\]", "MAX_ITER: 1, STEPS: []", short)
        (files / "my_config.yaml").write_text(short + "INPUT: {MIN_SIZE_TRAIN: [64]}\n")
        exec(compile(text, page, "exec"), {"__name__": "__main__"})

    in_a_fork(work)


@pytest.mark.parametrize(("page", "text"), blocks("yaml"))
def test_configs_in_the_text_are_right(page, text):
    keys = yaml.safe_load(text)
    keys.pop("_BASE_", None)
    get_cfg().merge_from_other_cfg(CfgNode(keys))


@pytest.mark.parametrize(("page", "text"), blocks("not run"))
def test_scripts_parse(page, text):
    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).stderr == ""


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    """From top to bottom, with fewer images and iterations, and without Jupyter."""
    book = json.loads((REPO / "notebooks" / "gn_det_in_ten_minutes.ipynb").read_text())
    text = "\n".join("".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code")
    short = text.replace("ITERATIONS = 540", "ITERATIONS = 10").replace(
        "num_train=300, num_val=60", "num_train=4, num_val=3"
    )
    assert short.count("ITERATIONS = 10 ") == 1 and "num_train=4" in short
    display = types.ModuleType("IPython.display")
    display.Image = display.Markdown = lambda *content, **options: (content, options)
    display.display = print
    ipython = types.ModuleType("IPython")
    ipython.version_info = (9, 0)  # matplotlib asks
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    printed = in_a_fork(lambda: exec(compile(short, "notebook", "exec"), {"__name__": "__main__"}))
    assert "GroupNorm equals by_hand: True" in printed and "box AP" in printed
