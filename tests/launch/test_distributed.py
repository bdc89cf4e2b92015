"""Two processes with one image each train a GN model to the same weights as one process with both images.

GN does not depend on the batch. For an exact comparison, each image must have the same weight in the loss: each has two
objects, all anchors and proposals are sampled, and only the objects themselves are foreground.

One job trains all variants: starting two processes takes longer than training.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.forks import fork_tool, in_a_fork
from helpers.paths import TOOLS
from helpers.two_processes import train_in_processes

EVERYTHING_SAMPLED = """
    MODEL.RPN.BATCH_SIZE_PER_IMAGE 4800 MODEL.RPN.POSITIVE_FRACTION 1.0 MODEL.RPN.NMS_THRESH 1.0
    MODEL.RPN.PRE_NMS_TOPK_TRAIN 200 MODEL.RPN.POST_NMS_TOPK_TRAIN 50 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 64
    MODEL.ROI_HEADS.POSITIVE_FRACTION 1.0 MODEL.ROI_HEADS.IOU_THRESHOLDS [0.99]
    INPUT.RANDOM_FLIP none INPUT.MIN_SIZE_TRAIN (96,) DATALOADER.NUM_WORKERS 0 DATALOADER.ASPECT_RATIO_GROUPING False
    SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 3 SOLVER.STEPS () SOLVER.WARMUP_ITERS 0 SOLVER.BASE_LR 0.01 SEED 7
""".split()
NORM_KEYS = ("MODEL.RESNETS.NORM", "MODEL.FPN.NORM", "MODEL.ROI_BOX_HEAD.NORM", "MODEL.ROI_MASK_HEAD.NORM")
BN = [word for key in NORM_KEYS for word in (key, "BN")]
FOUR_IMAGES = ["SOLVER.IMS_PER_BATCH", "4"]
ACCUMULATED = "TRAIN.ACCUMULATE 2 TRAIN.CHECKPOINT_ACTIVATIONS True TRAIN.CHANNELS_LAST True".split()
OPTIONS = """SOLVER.MAX_ITER 6 SOLVER.STEPS () SOLVER.IMS_PER_BATCH 2 SEED 5 DATALOADER.NUM_WORKERS 0 TEST.EVAL_PERIOD 2
    MODEL.RPN.POST_NMS_TOPK_TEST 10 TRAIN.BEST True TRAIN.EMA.ENABLED True TRAIN.EARLY_STOP.MIN_DELTA 100.0
    TRAIN.PICTURES 1""".split()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Four images of noise, each with two rectangles. Their sizes differ, so that batches are padded."""
    folder, rng = tmp_path_factory.mktemp("two objects"), np.random.default_rng(0)
    images, annotations = [], []
    for number, (height, width) in enumerate([(96, 96), (96, 150), (130, 96), (96, 96)]):
        pixels = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
        for left in (4, 52):
            x, y, w, h = left, *rng.integers(8, 40, 3).tolist()
            pixels[y : y + h, x : x + w] = rng.integers(120, 255, 3)
            box = {"bbox": [x, y, w, h], "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]], "area": w * h}
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0, **box})
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
    categories = [{"id": 1, "name": "rectangle"}]
    (folder / "train.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return folder


def arguments(data: Path, output: Path, *opts: str, evaluated: bool = False) -> list[str]:
    """Return the arguments of a training, with an evaluation on the training data if ``evaluated``."""
    words = ["--config", "quickstart_R18_FPN_gn_scratch"]
    for role in ("train", "val")[: 1 + evaluated]:
        words += [f"--{role}-json", str(data / "train.json"), f"--{role}-images", str(data)]
    return [*words, *opts, "OUTPUT_DIR", str(output)]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> tuple[Path, str]:
    """The folder of the outputs of all variants, and what the two processes printed."""
    folder = tmp_path_factory.mktemp("trained")
    one = {"GN": [], "BN": BN, "four images": FOUR_IMAGES}
    two = {**one, "four images": FOUR_IMAGES + ACCUMULATED}
    stopped = arguments(data, folder / "stopped", *OPTIONS, "TRAIN.EARLY_STOP.PATIENCE", "1", evaluated=True)
    printed = []
    for number, named, more in ((2, two, [stopped]), (1, one, [])):
        variants = [
            arguments(data, folder / f"{name} {number}", *EVERYTHING_SAMPLED, *opts) for name, opts in named.items()
        ]
        done = in_a_fork(train_in_processes, number, variants + more)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        printed.append(done.stdout)
    return folder, printed[0]


def load(output: Path, name: str = "model_final.pth") -> dict:
    return torch.load(output / name, weights_only=True)


def difference(a: Path, b: Path) -> float:
    """Return the largest difference of the final weights of two runs."""
    weights, others = load(a)["model"], load(b)["model"]
    assert weights.keys() == others.keys()
    return max((weights[key].double() - others[key].double()).abs().max().item() for key in weights)


def test_two_processes_equal_one_with_gn(trained):
    assert difference(trained[0] / "GN 1", trained[0] / "GN 2") < 1e-5


def test_two_processes_differ_from_one_with_bn(trained):
    assert difference(trained[0] / "BN 1", trained[0] / "BN 2") > 1e-3


def test_gradient_accumulation_on_two_processes_equals_whole_batch_on_one(trained):
    assert difference(trained[0] / "four images 1", trained[0] / "four images 2") < 1e-5


@pytest.mark.slow
def test_torchrun_equals_one_process_with_gn(trained, data, tmp_path):
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, str(TOOLS / "train_net.py"), *arguments(data, tmp_path / "two", *EVERYTHING_SAMPLED)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert difference(trained[0] / "GN 1", tmp_path / "two") < 1e-5


def test_early_stop_on_two_processes_saves_best_and_averaged_weights(trained):
    output, printed = trained[0] / "stopped", trained[1]
    assert "Training stops early, after 4 of 6 iterations" in printed and str(output / "model_best.pth") in printed
    final, best = load(output), load(output, "model_best.pth")
    assert final["model"].keys() == final["raw_model"].keys() == best["model"].keys() and final["iteration"] == 3
    assert not any(key.startswith("module.") for key in final["model"])


@pytest.mark.slow
def test_stopped_run_is_continued_on_two_processes(trained, data, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(trained[0] / "stopped", output)
    words = arguments(data, output, *OPTIONS, "TRAIN.EARLY_STOP.PATIENCE", "5", evaluated=True)
    done = fork_tool("--num-gpus", 2, "--resume", *words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "resumes from iteration 4" in done.stdout and load(output)["iteration"] == 5
    names = sorted(path.name[-12:] for path in (output / "records").iterdir())
    assert names == ["0000002.json", "0000004.json", "0000006.json"]
