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
from gn_det.checkpoint.checkpointer import Checkpointer
from gn_det.config.files import load_config
from gn_det.data import shapes
from gn_det.data.coco import register_coco_json
from gn_det.training.hooks import BestCheckpoint, evaluations_without_gain, measured_now, show_predictions


@pytest.mark.parametrize(
    "values,min_delta,waited",
    [
        ([], 0, 0),
        ([1], 0, 0),
        ([1, 1, 1], 0, 2),
        ([1, 2, 3], 0, 0),
        ([3, 1, 2], 0, 2),  # against the best, and not against the one before
        ([1, 1.4, 1.8], 0.5, 0),  # small steps add up
        ([1, 1.4, 1.4], 0.5, 2),
    ],
)
def test_evaluations_without_gain(values, min_delta, waited):
    assert evaluations_without_gain(values, min_delta) == waited


def test_only_a_value_of_this_iteration_counts(caplog):
    with EventStorage(7) as storage:
        trainer = types.SimpleNamespace(storage=storage)
        assert measured_now(trainer, "bbox/AP") is None
        storage.put_scalar("bbox/AP", 12.34567, smoothing_hint=False)
        assert measured_now(trainer, "bbox/AP") == 12.3457
        storage.iter = 8
        assert measured_now(trainer, "bbox/AP") is None and not caplog.records
        storage.put_scalar("bbox/APs", math.nan, smoothing_hint=False)  # another name: it is said once for each
        assert measured_now(trainer, "bbox/APs") is None and "choose another TRAIN.METRIC" in caplog.text


def test_a_best_file_of_something_else_is_refused_and_of_another_metric_is_said(tmp_path, caplog):
    hook = BestCheckpoint("bbox/AP", Checkpointer(nn.Linear(1, 1), str(tmp_path)))
    hook.recall()  # nothing there
    torch.save({"best": {"metric": "segm/AP", "value": 50.0, "iteration": 3}}, tmp_path / "model_best.pth")
    hook.recall()
    assert "is the best by segm/AP; the best by bbox/AP will replace it" in caplog.text and not hook._best
    for content in (b"", b"not a checkpoint"):
        (tmp_path / "model_best.pth").write_bytes(content)
        with pytest.raises(GNDetError, match="move it elsewhere"):
            hook.recall()
    torch.save({"model": {}}, tmp_path / "model_best.pth")
    with pytest.raises(GNDetError, match="move it elsewhere"):
        hook.recall()


@pytest.fixture
def evaluated(tmp_path):
    """The config of a run that has evaluated itself on three images."""
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
    with EventStorage(4) as storage:
        show_predictions(cfg)
        return storage._vis_data


def test_predictions_go_to_the_event_storage_small(evaluated):
    pytest.importorskip("cv2", reason="detectron2's Visualizer needs OpenCV")
    evaluated.TRAIN.PICTURES = 2
    first, second = shown(evaluated)
    assert (first[0], second[0], first[2]) == ("test_shown/000001", "test_shown/000003", 4)
    assert first[1].dtype == np.uint8 and first[1].shape[0] == 3 and max(first[1].shape) == 640
    left, right = first[1][:, 20:, :310].astype(int), first[1][:, 20:, 330:].astype(int)
    assert np.abs(left - right).max() > 100  # one detection, and another truth


def test_no_pictures_where_none_are_asked_for_or_nothing_can_draw(evaluated, monkeypatch):
    off = evaluated.clone()
    off.TRAIN.PICTURES = 0
    assert shown(off) == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert shown(evaluated) == []
