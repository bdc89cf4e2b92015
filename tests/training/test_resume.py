"""A resumed training equals one that was not interrupted, and says what differs from its checkpoint."""

import itertools
import logging
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from gn_det.config.files import load_config
from gn_det.data import shapes
from gn_det.data.coco import register_coco_json
from gn_det.training.guards.hooks import save_now
from gn_det.training.resume import DataOrder, describe_changes
from gn_det.training.trainer import Trainer, _trained_iterations
from helpers.forks import fork_tool, in_a_fork
from helpers.paths import TOOLS
from helpers.tools import own_data
from helpers.two_processes import train_in_processes

SHIPPED = "quickstart_R18_FPN_gn_scratch"
SHORT = """INPUT.MIN_SIZE_TRAIN (80,96) SOLVER.MAX_ITER 10 SOLVER.STEPS (7,) SOLVER.WARMUP_ITERS 3 SOLVER.IMS_PER_BATCH 2
    SOLVER.CHECKPOINT_PERIOD 5 DATALOADER.NUM_WORKERS 0 SEED 5""".split()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    shapes.generate(folder, num_train=12, num_val=2, seed=1, size=96)
    return folder


class Noise(nn.Module):
    """A layer on the mean color of the images, with noise from all random generators."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, images: list[dict]) -> dict[str, torch.Tensor]:
        noise = torch.rand(1) + np.random.rand() + random.random()
        colors = torch.stack([row["image"].float().mean(dim=(1, 2)) / 255 for row in images])
        return {"loss": (self.layer(colors) - noise.float()).square().mean()}


class Small(Trainer):
    """Trainer of that model on real images."""

    read: list[list[int]] = []
    evaluated: list[int | None] = []

    @classmethod
    def build_model(cls, cfg):
        torch.manual_seed(0)
        return Noise()

    def build_writers(self):
        return []

    def before_step(self):
        super().before_step()
        self._trainer._data_loader_iter_obj = Noted(self._trainer._data_loader_iter)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        torch.rand(7)  # an evaluation may use the generators
        cls.evaluated.append(_trained_iterations(cfg))
        return {"bbox": {"AP": 1.0}}


class Noted:
    """Iterator that notes the ids of the images in :attr:`Small.read`."""

    def __init__(self, batches):
        self._batches = getattr(batches, "_batches", batches)

    def __next__(self):
        batch = next(self._batches)
        Small.read.append([row["image_id"] for row in batch])
        return batch


@pytest.fixture
def make(tmp_path, data, monkeypatch):
    """Function of (overrides, resume): returns a trainer that is ready to train, with OUTPUT_DIR ``tmp_path``."""
    classes = register_coco_json("few", str(data / "train.json"), str(data / "train"), tmp_path / "few.json")["classes"]
    assert len(classes) == 3
    (tmp_path / "out").mkdir()

    def build(*opts, resume=False) -> Small:
        monkeypatch.setattr(Small, "read", [])
        monkeypatch.setattr(Small, "evaluated", [])
        always = [
            "OUTPUT_DIR",
            tmp_path / "out",
            "MODEL.DEVICE",
            "cpu",
            "DATASETS.TRAIN",
            "('few',)",
            "DATASETS.TEST",
            "('few',)",
        ]
        always += ["MODEL.GN.IGNORE_PADDING", False, "TRAIN.PICTURES", 0, *SHORT]
        trainer = Small(load_config(SHIPPED, [str(word) for word in [*always, *opts]]))
        trainer.resume_or_load(resume=resume)
        return trainer

    yield build
    DatasetCatalog.remove("few")
    MetadataCatalog.remove("few")


def load(folder: Path, name: str = "model_final.pth") -> dict:
    return torch.load(folder / name, weights_only=True)


def differences(a: object, b: object, name: str = "") -> list[str]:
    """Return the names of the values that differ between two checkpoints."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for key in a.keys() | b.keys() for d in differences(a.get(key), b.get(key), f"{name}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return [d for n, pair in enumerate(itertools.zip_longest(a, b)) for d in differences(*pair, f"{name}.{n}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
    return [] if same else [name]


def back_to_5(folder: Path) -> None:
    """Remove what the run has saved after its fifth iteration."""
    for name in ("model_0000009.pth", "model_final.pth"):
        (folder / name).unlink()
    (folder / "last_checkpoint").write_text("model_0000004.pth")


VARIANTS = {
    "plain": [],
    "EMA and bfloat16": ["TRAIN.EMA.ENABLED", True, "SOLVER.AMP.ENABLED", True],
    "accumulation and a worker": ["TRAIN.ACCUMULATE", 2, "DATALOADER.NUM_WORKERS", 1],
    "evaluations in between": ["TEST.EVAL_PERIOD", 2],
    "not grouped": [
        "DATALOADER.ASPECT_RATIO_GROUPING",
        False,
        "DATALOADER.SAMPLER_TRAIN",
        "RepeatFactorTrainingSampler",
    ],
    "no seed": ["SEED", -1],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_five_and_five_iterations_equal_ten(make, tmp_path, variant):
    opts = VARIANTS[variant]
    make(*opts).train()
    whole, images = load(tmp_path / "out"), Small.read
    back_to_5(tmp_path / "out")
    make(*opts, resume=True).train()
    assert images[5:] == Small.read and len(Small.read) == 5 and images[:5] != images[5:]
    assert differences(whole, load(tmp_path / "out")) == []


def test_the_number_of_workers_does_not_change_the_training(make, tmp_path):
    make().train()
    whole = load(tmp_path / "out")["model"]
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    make("DATALOADER.NUM_WORKERS", 2).train()
    assert differences(whole, load(tmp_path / "out")["model"]) == []


def test_another_seed_changes_the_training(make, tmp_path):
    make().train()
    whole, images = load(tmp_path / "out")["model"], Small.read
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    make("SEED", 6).train()
    assert differences(whole, load(tmp_path / "out")["model"]) and images != Small.read


def test_a_checkpoint_is_saved_between_periods(make, tmp_path):
    make("SOLVER.MAX_ITER", 10).train()
    whole = load(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    trainer = make("SOLVER.MAX_ITER", 10)

    class Stop(BaseException):
        pass

    def after_step():
        Small.after_step(trainer)
        if trainer.iter == 2:
            save_now(trainer, trainer.checkpointer)
            save_now(trainer, trainer.checkpointer)
            raise Stop

    trainer.after_step = after_step
    with pytest.raises(Stop):
        trainer.train()
    assert (tmp_path / "out/last_checkpoint").read_text() == "model_0000002.pth"
    make("SOLVER.MAX_ITER", 10, resume=True).train()
    assert differences(whole, load(tmp_path / "out")) == []


def test_a_larger_batch_goes_on_behind_the_images_that_were_read(make, tmp_path, caplog):
    ungrouped = ["DATALOADER.ASPECT_RATIO_GROUPING", False]
    make(*ungrouped, "SOLVER.MAX_ITER", 4).train()
    first = list(itertools.chain(*Small.read))
    make(*ungrouped, "SOLVER.MAX_ITER", 5, "SOLVER.IMS_PER_BATCH", 4, resume=True).train()
    assert sorted(first + Small.read[0]) == sorted(set(first + Small.read[0]))
    (warning,) = [r.getMessage() for r in caplog.records if "differs from its checkpoint" in r.getMessage()]
    assert "SOLVER.IMS_PER_BATCH: 2 -> 4" in warning and "SOLVER.MAX_ITER: 4 -> 5" in warning
    assert "images per process: 2 -> 4" in warning and "OUTPUT_DIR" not in warning


@pytest.mark.parametrize("length", [10, 3])
def test_a_schedule_that_is_over_is_said(make, tmp_path, caplog, length):
    make().train()
    (tmp_path / "out/model_final.pth").unlink()  # as if the run was killed before it was written
    (tmp_path / "out/last_checkpoint").write_text("model_0000009.pth")
    before = load(tmp_path / "out", "model_0000009.pth")
    make("SOLVER.MAX_ITER", length, "SOLVER.STEPS", "()", resume=True).train()
    assert f"has been trained for 10 of SOLVER.MAX_ITER {length} iterations: nothing is left to train" in caplog.text
    assert Small.read == [] and Small.evaluated == [10]
    assert differences(before["model"], load(tmp_path / "out")["model"]) == []


def test_without_changes_nothing_is_warned_of(make, caplog):
    make().train()
    caplog.clear()
    caplog.set_level(logging.WARNING)
    make("DATALOADER.NUM_WORKERS", 1, "TRAIN.KEEP_CHECKPOINTS", 2, resume=True)
    assert ["nothing is left" in record.getMessage() for record in caplog.records] == [True]


def test_changes_are_described():
    cfg = load_config(SHIPPED)
    text = cfg.dump()
    cfg.merge_from_list(["MODEL.GN.EPS", 1e-4, "OUTPUT_DIR", "x", "DATASETS.TRAIN", ("a", "b")])
    described = describe_changes(text, cfg, [("processes", 1, 2)])
    assert (
        described == "DATASETS.TRAIN: ('shapes_train',) -> ('a', 'b'), MODEL.GN.EPS: 1e-05 -> 0.0001, processes: 1 -> 2"
    )
    assert describe_changes("NO_SUCH: 1", cfg).startswith("the config cannot be compared: ")
    assert describe_changes("", cfg) == ""


def test_a_checkpoint_without_the_order_is_resumed_at_its_iteration(make, tmp_path):
    make().train()
    images = Small.read
    back_to_5(tmp_path / "out")
    data = load(tmp_path / "out", "model_0000004.pth")
    del data["data_order"]
    torch.save(data, tmp_path / "out/model_0000004.pth")
    make(resume=True).train()
    assert Small.read == images[5:]


def test_the_state_of_the_order_does_not_change_during_a_run():
    order = DataOrder(None, seed=4)
    assert order.state_dict() == {"seed": 4, "origin": 0, "first": 0, "processes": 1}


# ---- trainings of a detector


def command(data: Path, output: Path, *opts: object) -> list[str]:
    return [str(word) for word in ["--config", SHIPPED, *own_data(data)[:4], *opts, *SHORT, "OUTPUT_DIR", output]]


@pytest.mark.slow
def test_two_processes_resume_exactly(data, tmp_path):
    opts = ["SOLVER.IMS_PER_BATCH", "4", "TRAIN.EMA.ENABLED", "True"]
    done = in_a_fork(train_in_processes, 2, [[*command(data, tmp_path / "out"), *opts]])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    whole = load(tmp_path / "out")
    back_to_5(tmp_path / "out")
    done = fork_tool("--num-gpus", 2, "--resume", *command(data, tmp_path / "out"), *opts)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "The training resumes from model_0000004.pth, after 5 iterations" in done.stdout
    assert differences(whole, load(tmp_path / "out")) == []


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_gives_the_same_weights(data, tmp_path):
    """Each try is killed at another time, also while a checkpoint is being saved."""
    period = ["SOLVER.CHECKPOINT_PERIOD", "1"]
    assert fork_tool(*command(data, tmp_path / "whole"), *period).returncode == 0
    words = [
        sys.executable,
        "-W",
        "ignore",
        str(TOOLS / "train_net.py"),
        "--resume",
        *command(data, tmp_path / "killed"),
        *period,
    ]
    rng, seen, kills = random.Random(0), "", 0
    while kills < 20 and not (tmp_path / "killed/model_final.pth").exists():
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(words, stdout=log, stderr=log)
            newest = _newest(tmp_path / "killed")
            while process.poll() is None and _newest(tmp_path / "killed") == newest:
                time.sleep(0.01)
            time.sleep(rng.random() / 2)
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
        seen = (tmp_path / "log").read_text()
        assert "Traceback" not in seen and "error:" not in seen
    assert fork_tool("--resume", *command(data, tmp_path / "killed"), *period).returncode == 0
    assert kills >= 3
    assert differences(load(tmp_path / "whole")["model"], load(tmp_path / "killed")["model"]) == []


def _newest(folder: Path) -> str:
    """Return the newest file of a folder that is saved or is being saved."""
    files = [*folder.glob("model_*.pth"), *folder.glob(".model_*.part")]
    return max((path.name for path in files), default="")
