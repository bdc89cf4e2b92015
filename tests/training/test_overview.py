"""The overview is read by people: these tests say what must stand in it and that it fits a terminal."""

import re
from collections import Counter

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils import comm
from torch import nn

from gn_det.config.files import load_config
from gn_det.modeling import norm
from gn_det.training.overview import count, norms_text, overview


def rows(*images: list[int]) -> list[dict]:
    return [{"annotations": [{"category_id": c, "iscrowd": int(c < 0)} for c in classes]} for classes in images]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.roi_heads = nn.ModuleDict({"box_head": nn.Linear(1000, 10), "mask_head": nn.GroupNorm(4, 8)})
        bottom_up = nn.Sequential(
            nn.Conv2d(3, 1000, 10), nn.GroupNorm(32, 64), nn.GroupNorm(32, 64), FrozenBatchNorm2d(8)
        )
        bottom_up[0].requires_grad_(False)
        self.backbone = nn.ModuleDict({"fpn_lateral2": nn.Conv2d(10, 1000, 1), "bottom_up": bottom_up})


@pytest.fixture
def say():
    """(training rows, test rows, number of classes, overrides) -> the lines of the overview."""
    names = ("over_train", "over_test")

    def make(train, test=(), classes=3, *opts, start_iter=0) -> list[str]:
        for name in names:
            for catalog in (DatasetCatalog, MetadataCatalog):
                catalog.pop(name, None)
            DatasetCatalog.register(name, lambda: list(test))
            MetadataCatalog.get(name).set(thing_classes=[f"class {i}" for i in range(classes)])
        words = ["DATASETS.TRAIN", "('over_train',)", "DATASETS.TEST", "('over_test',)" if test else "()"]
        given = load_config("quickstart_R18_FPN_gn_scratch", [*words, *map(str, opts)])
        from gn_det.training.trainer import Trainer

        scaled = Trainer.auto_scale_workers(given, comm.get_world_size())
        return overview(given, scaled, Model(), count(train), start_iter).splitlines()

    yield make
    for name in names:
        for catalog in (DatasetCatalog, MetadataCatalog):
            catalog.remove(name)


def line(lines: list[str], start: str) -> list[str]:
    """The line that begins so, in its columns."""
    return next(re.split(r"\s{2,}", row.strip()) for row in lines if row.startswith(start))


def test_counts_are_of_objects_and_of_images_that_have_them():
    counts = count(rows([0, 0, 1], [1], [], [-1]))
    assert (counts.images, counts.empty) == (4, 2)
    assert counts.objects == Counter({0: 2, 1: 2}) and counts.images_with == Counter({0: 1, 1: 2})


def test_classes_most_frequent_first(say):
    lines = say(rows([0, 2, 2], [2], []), rows([1]))
    assert [row[:7] for row in lines if row.startswith("class ")][1:] == ["class 2", "class 0", "class 1"]
    assert line(lines, "class 2") == ["class 2", "2", "3", "0", "0"]
    assert line(lines, "class 1") == ["class 1", "0", "0", "1", "1"]
    assert line(lines, "all") == ["all", "2", "4", "1", "1"]


def test_classes_that_cannot_be_learnt_are_named(say):
    assert line(say(rows([0, 2])), "no objects") == ["no objects of", "class 1"]
    assert not any(row.startswith("no objects") for row in say(rows([0, 1, 2])))
    assert "class 12, ... (79)" in " ".join(" ".join(say(rows([0]), (), 80)).split())


def test_eighty_classes_are_folded(say):
    train = rows(*([index] * (index + 1) for index in range(80)))
    lines = say(train, (), 80)
    shown = [row for row in lines if row.startswith("class ")][1:]
    assert [row[:8].strip() for row in shown] == [f"class {i}" for i in (79, 78, 77, 76, 3, 2, 1, 0)]
    assert line(lines, "... 72 more") == ["... 72 more", str(sum(range(5, 77)))]
    assert line(lines, "all") == ["all", "80", str(sum(range(1, 81)))]


def test_one_class_is_not_summed_up(say):
    lines = say(rows([0]), rows([0]), 1)
    assert line(lines, "class 0") == ["class 0", "1", "1", "1", "1"]
    assert [row for row in lines if row.startswith("all")] == [
        row for row in lines if row.startswith("all") and "." in row
    ]


def test_images_without_objects(say):
    train = rows([0], [], [])
    assert "2 of 3 images have no objects and are left out" in " ".join(say(train))
    kept = " ".join(say(train, (), 3, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False))
    assert "2 of 3 images have no objects and are kept" in kept and "epochs of 3 images" in kept


def test_data_schedule_and_switches(say):
    text = " ".join(" ".join(say(rows([0], []), rows([0]), 3, "TEST.EVAL_PERIOD", 50, start_iter=30)).split())
    assert "540 iterations = 2160.0 epochs of 1 images; goes on from 30" in text
    assert "over_test, 1 images; evaluated every 50 iterations and at the end" in text
    assert "4 images an iteration, on one process" in text
    assert "warm-up from x0.3333 over 50 iterations; x0.1 at 430, 500" in text and "switches" not in text
    on = ["TRAIN.EMA.ENABLED", True, "TRAIN.BEST", True, "TRAIN.METRIC", "segm/AP", "SOLVER.LR_SCHEDULER_NAME"]
    text = " ".join(" ".join(say(rows([0]), (), 3, *on, "WarmupCosineLR", "MODEL.WEIGHTS", "x.pkl")).split())
    assert "weights averaged with decay 0.999; best by segm/AP kept" in text and "cosine to 0" in text
    assert "none: nothing is evaluated" in text and "weights x.pkl" in text


def test_how_the_learning_rate_was_scaled(say, monkeypatch):
    assert "0.02 as given, not scaled: SOLVER.REFERENCE_WORLD_SIZE is 0" in " ".join(say(rows([0])))
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    text = " ".join(
        " ".join(say(rows([0]), (), 3, "SOLVER.REFERENCE_WORLD_SIZE", 8, "SOLVER.IMS_PER_BATCH", 16)).split()
    )
    assert "0.02 -> 0.005: scaled by the linear rule from SOLVER.REFERENCE_WORLD_SIZE 8 to 2 processes" in text
    assert "with 4x the iterations" in text and "4 images an iteration: 2 on each of 2 processes" in text
    assert "2160 iterations" in text and "x0.1 at 1720, 2000" in text
    text = " ".join(" ".join(say(rows([0]), (), 3, "SOLVER.REFERENCE_WORLD_SIZE", 2)).split())
    assert "0.02 as given, not scaled: it was made for 2 processes" in text


def test_images_at_a_time(say, monkeypatch):
    def text(*opts):
        return " ".join(" ".join(say(rows([0]), (), 3, *opts)).split())

    opts = ("SOLVER.IMS_PER_BATCH", 16, "TRAIN.ACCUMULATE", 4)
    assert "16 images an iteration, 4 at a time, on one process" in text(*opts)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    assert "16 images an iteration: 8 on each of 2 processes, 2 at a time" in text(*opts)


def test_switches_of_speed_and_memory(say):
    on = ["CHECKPOINT_ACTIVATIONS", "CHANNELS_LAST", "COMPILE"]
    lines = say(rows([0]), (), 3, "SOLVER.AMP.ENABLED", True, *[w for key in on for w in (f"TRAIN.{key}", True)])
    assert (
        "switches mixed precision in bfloat16; activations of the ResNet computed twice; channels last; backbone "
        in (" ".join(" ".join(lines).split()))
    )


def test_parts_with_parameters_and_norms(say):
    lines = say(rows([0]))
    assert line(lines, "backbone") == ["backbone", "0.00", "0.30", "2 GN of 32 groups, 1 BN*"]
    assert line(lines, "FPN") == ["FPN", "0.01", "0.00", "none"]
    assert line(lines, "mask head")[-1] == "1 GN of 4 groups"
    assert [row.split("  ")[0] for row in lines[-5:]] == ["backbone", "FPN", "box head", "mask head", "all"]


def test_norms_by_the_papers_names():
    cfg = load_config("mask_rcnn_R50_FPN_gn", ["MODEL.RESNETS.NORM", "LN", "MODEL.FPN.NORM", "IN"])
    key = "MODEL.%s.NORM"
    layers = [norm.norm_layer(cfg, key % part)(64) for part in ("RESNETS", "FPN", "ROI_BOX_HEAD")]
    assert norms_text(layers) == "1 LN, 1 IN, 1 GN of 32 groups"
    assert norms_text([nn.GroupNorm(4, 8), nn.GroupNorm(8, 8)]) == "2 GN of 4 or 8 groups"
    assert norms_text([nn.GroupNorm(1, 8)]) == "1 GN of 1 group" and norms_text([nn.BatchNorm2d(3)]) == "1 BN"


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_it_fits_a_terminal_of_80(say, classes):
    numbers = rows(*([index] * 10 for index in range(classes)))
    opts = ["TRAIN.EMA.ENABLED", True, "TRAIN.BEST", True, "TRAIN.EARLY_STOP.PATIENCE", 5, "TEST.EVAL_PERIOD", 500]
    lines = say(numbers, numbers, classes, *opts)
    assert max(map(len, lines)) < 80 and len(lines) < 45
