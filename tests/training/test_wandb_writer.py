"""Weights & Biases writer, with a stand-in for wandb; also with the real wandb in offline mode, if it is installed."""

import sys
import types

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage

from gn_det import GNDetError
from gn_det.config.files import load_config
from gn_det.training.hooks import EarlyStopped
from gn_det.training.wandb_writer import WandbWriter


class Run:
    """Stand-in for a run of wandb; ``arguments`` are those of ``wandb.init``."""

    def __init__(self, arguments: dict):
        self.arguments, self.id = arguments, arguments["id"] or "new1"
        self.rows, self.metrics, self.exit_code = [], [], None

    def define_metric(self, name, step_metric=None):
        self.metrics.append((name, step_metric))

    def log(self, row):
        self.rows.append(row)

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch):
    """Stand-in for the module wandb, with a list ``runs`` of the runs that were started."""
    module = types.ModuleType("wandb")
    module.runs, module.Image = [], lambda pixels: ("image", pixels.shape)
    module.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
    module.init = lambda **arguments: module.runs.append(Run(arguments)) or module.runs[-1]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def cfg(tmp_path):
    return load_config("quickstart_R18_FPN_gn_scratch", ["OUTPUT_DIR", str(tmp_path), "SEED", "5"])


def write(writer: WandbWriter) -> None:
    with EventStorage(0) as storage:
        for iteration in range(2):
            storage.iter = iteration
            storage.put_scalar("total_loss", 3.0 - iteration)
        storage.put_scalar("bbox/AP", 12.5, smoothing_hint=False)
        storage.put_image("tiny/1", np.zeros((3, 8, 9), np.uint8))
        writer.write()
        storage.clear_images()
        writer.write()  # must log nothing again


def test_losses_ap_images_and_config_are_logged(wandb, cfg):
    writer = WandbWriter(cfg)
    write(writer)
    (run,) = wandb.runs
    assert run.rows == [{"iteration": 1, "total_loss": 2.5, "bbox/AP": 12.5, "tiny/1": ("image", (8, 9, 3))}]
    assert run.metrics == [("iteration", None), ("*", "iteration")]
    assert run.arguments["config"]["SEED"] == 5 and run.arguments["project"] == "gn_det"
    assert run.arguments["dir"] == cfg.OUTPUT_DIR and run.arguments["id"] is None
    writer.close()
    assert run.exit_code == 0


def test_resumed_training_continues_the_same_run(wandb, cfg, tmp_path):
    WandbWriter(cfg)
    WandbWriter(cfg)
    assert wandb.runs[-1].arguments["id"] is None  # without a checkpoint, a new run is started
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    WandbWriter(cfg)
    assert wandb.runs[-1].arguments["id"] == "new1" and wandb.runs[-1].arguments["resume"] == "allow"


def test_failure_is_reported_and_early_stop_is_a_success(wandb, cfg):
    def end(error):
        writer = WandbWriter(cfg)
        try:
            raise error
        finally:
            writer.close()

    for error, code in ((ValueError, 1), (KeyboardInterrupt, 1), (EarlyStopped, 0)):
        with pytest.raises(error):
            end(error)
        assert wandb.runs[-1].exit_code == code


def test_failed_start_is_one_sentence(wandb, cfg):
    def no_key(**arguments):
        raise wandb.errors.Error("No API key\nconfigured.")

    wandb.init = no_key
    with pytest.raises(GNDetError, match="could not start: No API key configured. Set WANDB_MODE=offline"):
        WandbWriter(cfg)


def test_images_may_be_tensors(wandb, cfg):
    with EventStorage(0) as storage:
        storage.put_image("x", torch.zeros(3, 2, 4))
        WandbWriter(cfg).write()
    assert wandb.runs[0].rows == [{"iteration": 0, "x": ("image", (2, 4, 3))}]


def test_real_wandb_in_offline_mode(cfg, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    writer = WandbWriter(cfg)
    write(writer)
    writer.close()
    assert (tmp_path / "wandb_run_id.txt").read_text() and list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
