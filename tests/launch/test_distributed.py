"""Two processes with one image each train a GN model to the same weights as one process with both images.

GN does not depend on the batch. For an exact comparison, each image must have the same weight in the loss: each has two
objects, all anchors and proposals are sampled, and only the objects themselves are foreground.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.paths import REPO

EVERYTHING_SAMPLED = """
    MODEL.RPN.BATCH_SIZE_PER_IMAGE 2400 MODEL.RPN.POSITIVE_FRACTION 1.0 MODEL.RPN.NMS_THRESH 1.0
    MODEL.RPN.PRE_NMS_TOPK_TRAIN 200 MODEL.RPN.POST_NMS_TOPK_TRAIN 50 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 64
    MODEL.ROI_HEADS.POSITIVE_FRACTION 1.0 MODEL.ROI_HEADS.IOU_THRESHOLDS [0.99]
    INPUT.RANDOM_FLIP none INPUT.MIN_SIZE_TRAIN (96,) DATALOADER.NUM_WORKERS 0
    SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 3 SOLVER.STEPS () SOLVER.WARMUP_ITERS 0 SOLVER.BASE_LR 0.01 SEED 7
""".split()
NORM_KEYS = ("MODEL.RESNETS.NORM", "MODEL.FPN.NORM", "MODEL.ROI_BOX_HEAD.NORM", "MODEL.ROI_MASK_HEAD.NORM")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Four 96 x 96 images of noise, each with two rectangles."""
    folder, rng = tmp_path_factory.mktemp("two objects"), np.random.default_rng(0)
    images, annotations = [], []
    for number in range(4):
        pixels = rng.integers(0, 120, (96, 96, 3), dtype=np.uint8)
        for left in (4, 52):
            x, y, w, h = left, *rng.integers(8, 40, 3).tolist()
            pixels[y : y + h, x : x + w] = rng.integers(120, 255, 3)
            box = {"bbox": [x, y, w, h], "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]], "area": w * h}
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0, **box})
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 96, "width": 96})
    categories = [{"id": 1, "name": "rectangle"}]
    (folder / "train.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return folder


def train(
    data: Path, output: Path, norm: str, *opts: object, processes: int, torchrun: bool = False
) -> dict[str, torch.Tensor]:
    launcher = [sys.executable, "-W", "ignore"]
    if torchrun:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, str(REPO / "tools/train_net.py"), "--config", "quickstart_R18_FPN_gn_scratch"]
    command += ["--train-json", str(data / "train.json"), "--train-images", str(data)]
    command += [] if torchrun else ["--num-gpus", str(processes)]
    command += [*EVERYTHING_SAMPLED, "OUTPUT_DIR", str(output)]
    command += [word for key in NORM_KEYS for word in (key, norm)] + list(map(str, opts))
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[key].double() - b[key].double()).abs().max().item() for key in a)


@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [False, True], ids=["--num-gpus 2", "torchrun"])
def test_two_processes_equal_one_with_gn(data, tmp_path, torchrun):
    one = train(data, tmp_path / "one", "GN", processes=1)
    two = train(data, tmp_path / "two", "GN", processes=2, torchrun=torchrun)
    assert difference(one, two) < 1e-5


@pytest.mark.slow
def test_two_processes_differ_from_one_with_bn(data, tmp_path):
    one = train(data, tmp_path / "one", "BN", processes=1)
    two = train(data, tmp_path / "two", "BN", processes=2)
    assert difference(one, two) > 1e-3


@pytest.mark.slow
def test_gradient_accumulation_on_two_processes_equals_whole_batch_on_one(data, tmp_path):
    batch = ("SOLVER.IMS_PER_BATCH", 4)
    one = train(data, tmp_path / "one", "GN", *batch, processes=1)
    options = ("TRAIN.ACCUMULATE", 2, "TRAIN.CHECKPOINT_ACTIVATIONS", True, "TRAIN.CHANNELS_LAST", True)
    two = train(data, tmp_path / "two", "GN", *batch, *options, processes=2)
    assert difference(one, two) < 1e-5
