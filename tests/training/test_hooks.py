"""Best weights, early stop and images after evaluations, without a trainer (see test_trainer.py)."""

import json
import math
import types

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage
from torch import nn

from gn_det import GNDetError
from gn_det.acceleration.on_device.scalars import put_scalar
from gn_det.checkpoint.checkpointer import Checkpointer
from gn_det.config.files import load_config
from gn_det.data import shapes
from gn_det.data.coco import register_coco_json
from gn_det.training.hooks import (
    BestCheckpoint,
    ReadMetrics,
    evaluations_without_improvement,
    metric_at_this_iteration,
    show_predictions,
)


@pytest.mark.parametrize(
    ("values", "min_delta", "waited"),
    [
        ([], 0, 0),
        ([1], 0, 0),
        ([1, 1, 1], 0, 2),
        ([1, 2, 3], 0, 0),
        ([3, 1, 2], 0, 2),  # compared with the best value, not with the previous one
        ([1, 1.4, 1.8], 0.5, 0),  # small steps add up
        ([1, 1.4, 1.4], 0.5, 2),
    ],
)
def test_evaluations_without_improvement(values, min_delta, waited):
    assert evaluations_without_improvement(values, min_delta) == waited


def test_metric_is_only_returned_if_measured_at_this_iteration(caplog):
    with EventStorage(7) as storage:
        trainer = types.SimpleNamespace(storage=storage)
        assert metric_at_this_iteration(trainer, "bbox/AP") is None
        storage.put_scalar("bbox/AP", 12.34567, smoothing_hint=False)
        assert metric_at_this_iteration(trainer, "bbox/AP") == 12.3457
        storage.iter = 8
        assert metric_at_this_iteration(trainer, "bbox/AP") is None and not caplog.records
        storage.put_scalar(
            "bbox/APs", math.nan, smoothing_hint=False
        )  # another metric, because the warning is logged once per metric
        assert metric_at_this_iteration(trainer, "bbox/APs") is None and "choose another TRAIN.METRIC" in caplog.text


def test_best_file_of_another_metric_is_reported_and_a_damaged_one_is_refused(tmp_path, caplog):
    hook = BestCheckpoint("bbox/AP", Checkpointer(nn.Linear(1, 1), str(tmp_path)))
    hook.restore()  # no file yet
    torch.save({"best": {"metric": "segm/AP", "value": 50.0, "iteration": 3}}, tmp_path / "model_best.pth")
    hook.restore()
    assert "has the best weights by segm/AP; the best by bbox/AP will replace them" in caplog.text and not hook._best
    for content in (b"", b"not a checkpoint"):
        (tmp_path / "model_best.pth").write_bytes(content)
        with pytest.raises(GNDetError, match="move it to another folder"):
            hook.restore()
    torch.save({"model": {}}, tmp_path / "model_best.pth")
    with pytest.raises(GNDetError, match="move it to another folder"):
        hook.restore()


@pytest.fixture
def evaluated(tmp_path):
    """Config of a run that was evaluated on three images."""
    json_file, images = shapes.generate(tmp_path / "shapes", num_train=1, num_val=3, size=96)["val"]
    register_coco_json("test_shown", json_file, images, tmp_path / "clean.json")
    folder = tmp_path / "inference" / "test_shown"
    folder.mkdir(parents=True)
    rows = [{"image_id": 1, "category_id": 1, "bbox": [8, 8, 40, 40], "score": 0.9}]
    (folder / "coco_instances_results.json").write_text(json.dumps(rows))
    yield load_config(
        "quickstart_R18_FPN_gn_scratch", ["OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", "('test_shown',)"]
    )
    DatasetCatalog.remove("test_shown")


def shown(cfg) -> list:
    """Return the images that are added to the event storage: (name, pixels, iteration)."""
    with EventStorage(4) as storage:
        show_predictions(cfg)
        return storage._vis_data


def test_predictions_are_added_to_the_event_storage_at_reduced_size(evaluated):
    pytest.importorskip("cv2", reason="detectron2's Visualizer needs OpenCV")
    evaluated.TRAIN.PICTURES = 2
    first, second = shown(evaluated)
    assert (first[0], second[0], first[2]) == ("test_shown/000001", "test_shown/000003", 4)
    assert first[1].dtype == np.uint8 and first[1].shape[0] == 3 and max(first[1].shape) == 640
    left, right = first[1][:, 20:, :310].astype(int), first[1][:, 20:, 330:].astype(int)
    assert np.abs(left - right).max() > 100  # the detection differs from the ground truth


def test_no_images_if_turned_off_or_without_opencv(evaluated, monkeypatch):
    off = evaluated.clone()
    off.TRAIN.PICTURES = 0
    assert shown(off) == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert shown(evaluated) == []


def test_metrics_on_the_device_are_read_before_the_writers_run():
    """Every 20 iterations, after the last one, and when the training ends early."""
    hook = ReadMetrics()
    with EventStorage() as storage:
        hook.trainer = types.SimpleNamespace(iter=0, max_iter=45, storage=storage)
        read = []
        for hook.trainer.iter in range(45):
            storage.iter = hook.trainer.iter
            put_scalar("accuracy", torch.tensor(0.5))
            hook.after_step()
            read.append(len(storage.history("accuracy").values()) if storage.latest() else 0)
        assert read == [0] * 19 + [20] * 20 + [40] * 5 + [45]
        put_scalar("accuracy", torch.tensor(0.5))
        hook.after_train()
    assert len(storage.history("accuracy").values()) == 46
