"""Every command of README and docs is run once, cut down to a step, in a folder that has the files they name.

bash blocks are commands, python blocks programs, yaml blocks configs. A bash block below ``<!-- not run -->`` is only
parsed: it needs the network, COCO or several machines.
"""

import itertools
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

from gn_det import get_cfg
from gn_det.data import shapes
from helpers.commands import plan_study, run_command, run_notebook, run_program
from helpers.forks import in_a_fork
from helpers.paths import REPO

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
NOT_RUN = "<!-- not run -->\n"


def blocks(language: str) -> list[tuple[str, str]]:
    """The page and the text of each fenced block of a language; "not run" is that of marked bash blocks."""
    fence = re.compile(rf"^({NOT_RUN})?```(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    found = [(page.name, match) for page in PAGES for match in fence.findall(page.read_text())]
    return [(page, text) for page, (mark, kind, text) in found if ("not run" if mark else kind) == language]


FIRST_PAGES = ("README.md", "quick_start.md")
SLOW = {"tools/train_net.py", "train", "tools/analyze_model.py", "analyze"}


def commands() -> list:
    """The page and the words of each distinct command. Those of README and the quick start run in every test run."""
    found = {}
    for page, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            if words := tuple(word.removeprefix(".venv/bin/") for word in shlex.split(line, comments=True)):
                found.setdefault(words[1:] if words[0] == "python" else words, page)
    return [
        pytest.param(
            page,
            words,
            marks=() if page in FIRST_PAGES or SLOW.isdisjoint(words) else pytest.mark.slow,
            id=f"{page}-{' '.join(words)[:60]}",
        )
        for words, page in found.items()
    ]


def printed_in_a_fork(function: Callable[..., None], *arguments: object) -> str:
    """Call a function in a process of its own; return what it printed."""
    done = in_a_fork(function, *arguments)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


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
    short = re.sub(r"MAX_ITER: \d+, STEPS: \[.*?\]", "MAX_ITER: 1, STEPS: []", config)
    short = short.replace("ROI_HEADS: {", "ROI_HEADS: {BATCH_SIZE_PER_IMAGE: 4, ")
    assert "MAX_ITER: 1" in short and "BATCH_SIZE_PER_IMAGE: 4" in short
    (root / "my_config.yaml").write_text(f"{short}INPUT: {{MIN_SIZE_TRAIN: [64]}}\nDATALOADER: {{NUM_WORKERS: 0}}\n")
    return root


@pytest.fixture(scope="module")
def trained(files) -> Path:
    """A run of one step on these files, with an evaluation."""
    data = "--train-json train.json --train-images images --val-json val.json --val-images images"
    words = f"tools/train_net.py --config quickstart_R18_FPN_gn_scratch {data} OUTPUT_DIR trained".split()
    printed_in_a_fork(run_command, words, files)
    return files / "trained"


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


def number_of_trainings(words: Sequence[str]) -> int:
    """Return the number of trainings of a norm study."""
    values = dict(itertools.pairwise(words))
    lists = [values[flag].split(",") for flag in ("--norms", "--batch-size")]
    return len(lists[0]) * len(lists[1]) * int(values.get("--seeds", 1))


@pytest.mark.parametrize(("page", "words"), commands())
def test_command_runs(page, words, files, trained):
    """Of the norm studies, that of README trains. The others only plan, because each training is a process of its own."""
    if words[0] == "make":
        assert re.search(f"^{words[1]}:", (REPO / "Makefile").read_text(), re.MULTILINE)
        return
    prepare_outputs(words, trained)
    if "--norms" in words and page != "README.md":
        printed = printed_in_a_fork(plan_study, words, files)
        assert printed.count("would train") == number_of_trainings(words)
    else:
        printed_in_a_fork(run_command, words, files)


def test_readme_has_a_norm_study():
    assert any(page == "README.md" and "--norms" in words for page, words in (row.values for row in commands()))


@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_programs_run(page, text, files, trained):
    shutil.rmtree(files / "output", ignore_errors=True)
    prepare_outputs(["output/mine"], trained)
    printed_in_a_fork(run_program, text, page, files)


@pytest.mark.parametrize(("page", "text"), blocks("yaml"))
def test_configs_in_the_text_are_right(page, text):
    keys = yaml.safe_load(text)
    keys.pop("_BASE_", None)
    get_cfg().merge_from_other_cfg(CfgNode(keys))


@pytest.mark.parametrize(("page", "text"), blocks("not run"))
def test_scripts_parse(page, text):
    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).stderr == ""


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    """From top to bottom, with fewer images and iterations, and without Jupyter."""
    book = json.loads((REPO / "notebooks" / "gn_det_in_ten_minutes.ipynb").read_text())
    text = "\n".join("".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code")
    short = text.replace("ITERATIONS = 540", "ITERATIONS = 6").replace(
        "num_train=300, num_val=60", "num_train=4, num_val=3"
    )
    assert short.count("ITERATIONS = 6 ") == 1 and "num_train=4" in short
    printed = printed_in_a_fork(run_notebook, short, tmp_path)
    assert "GroupNorm equals by_hand: True" in printed and "box AP" in printed
