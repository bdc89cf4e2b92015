"""Summary at the start of training: its content, and that it fits a terminal."""

import re
from collections import Counter

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils import comm
from torch import nn

from gn_det.config.files import load_config
from gn_det.modeling import norm
from gn_det.training.overview import count_objects, describe_norms, format_overview


def records(*images: list[int]) -> list[dict]:
    """Return a dataset with the given classes of the objects of each image; -1 is a crowd."""
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
def overview_lines():
    """Function of (training set, test set, number of classes, overrides): returns the lines of the overview."""
    names = ("over_train", "over_test")

    def make(train, test=(), classes=3, *opts, start_iter=0) -> list[str]:
        for name in names:
            for catalog in (DatasetCatalog, MetadataCatalog):
                catalog.pop(name, None)
            DatasetCatalog.register(name, lambda: list(test))
            MetadataCatalog.get(name).set(thing_classes=[f"class {i}" for i in range(classes)])
        words = ["DATASETS.TRAIN", "('over_train',)", "DATASETS.TEST", "('over_test',)" if test else "()"]
        original = load_config("quickstart_R18_FPN_gn_scratch", [*words, *map(str, opts)])
        from gn_det.training.trainer import Trainer

        scaled = Trainer.auto_scale_workers(original, comm.get_world_size())
        return format_overview(original, scaled, Model(), count_objects(train), start_iter).splitlines()

    yield make
    for name in names:
        for catalog in (DatasetCatalog, MetadataCatalog):
            catalog.remove(name)


def line(lines: list[str], start: str) -> list[str]:
    """Return the columns of the line that begins with ``start``."""
    return next(re.split(r"\s{2,}", row.strip()) for row in lines if row.startswith(start))


def test_count_objects_counts_objects_and_the_images_that_have_them():
    counts = count_objects(records([0, 0, 1], [1], [], [-1]))
    assert (counts.images, counts.empty) == (4, 2)
    assert counts.objects == Counter({0: 2, 1: 2}) and counts.images_with == Counter({0: 1, 1: 2})


def test_classes_are_sorted_by_frequency(overview_lines):
    lines = overview_lines(records([0, 2, 2], [2], []), records([1]))
    assert [row[:7] for row in lines if row.startswith("class ")][1:] == ["class 2", "class 0", "class 1"]
    assert line(lines, "class 2") == ["class 2", "2", "3", "0", "0"]
    assert line(lines, "class 1") == ["class 1", "0", "0", "1", "1"]
    assert line(lines, "all") == ["all", "2", "4", "1", "1"]


def test_classes_without_training_objects_are_named(overview_lines):
    assert line(overview_lines(records([0, 2])), "empty classes") == ["empty classes", "class 1"]
    assert not any(row.startswith("empty classes") for row in overview_lines(records([0, 1, 2])))
    assert "class 12, ... (79)" in " ".join(" ".join(overview_lines(records([0]), (), 80)).split())


def test_only_most_and_least_frequent_of_80_classes_are_shown(overview_lines):
    train = records(*([index] * (index + 1) for index in range(80)))
    lines = overview_lines(train, (), 80)
    shown = [row for row in lines if row.startswith("class ")][1:]
    assert [row[:8].strip() for row in shown] == [f"class {i}" for i in (79, 78, 77, 76, 3, 2, 1, 0)]
    assert line(lines, "... 72 more") == ["... 72 more", str(sum(range(5, 77)))]
    assert line(lines, "all") == ["all", "80", str(sum(range(1, 81)))]


def test_single_class_has_no_row_of_totals(overview_lines):
    lines = overview_lines(records([0]), records([0]), 1)
    assert line(lines, "class 0") == ["class 0", "1", "1", "1", "1"]
    assert [row for row in lines if row.startswith("all")] == [
        row for row in lines if row.startswith("all") and "." in row
    ]


def test_images_without_objects_are_reported(overview_lines):
    train = records([0], [], [])
    assert "2 of 3 images have no objects and are left out" in " ".join(overview_lines(train))
    kept = " ".join(overview_lines(train, (), 3, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False))
    assert "2 of 3 images have no objects and are kept" in kept and "epochs of 3 images" in kept


def test_data_schedule_and_options_are_reported(overview_lines):
    text = " ".join(
        " ".join(overview_lines(records([0], []), records([0]), 3, "TEST.EVAL_PERIOD", 50, start_iter=30)).split()
    )
    assert "540 iterations = 2160.0 epochs of 1 images; resumes from iteration 30" in text
    assert "over_test, 1 images; evaluated every 50 iterations and at the end" in text
    assert "4 images per iteration, on one process" in text
    assert "warm-up from x0.3333 over 50 iterations; x0.1 at 430, 500" in text and "options" not in text
    on = ["TRAIN.EMA.ENABLED", True, "TRAIN.BEST", True, "TRAIN.METRIC", "segm/AP", "SOLVER.LR_SCHEDULER_NAME"]
    text = " ".join(
        " ".join(overview_lines(records([0]), (), 3, *on, "WarmupCosineLR", "MODEL.WEIGHTS", "x.pkl")).split()
    )
    assert "weights averaged with decay 0.999; best weights by segm/AP saved" in text and "cosine to 0" in text
    assert "none: nothing is evaluated" in text and "weights x.pkl" in text


def test_scaling_of_the_learning_rate_is_reported(overview_lines, monkeypatch):
    assert "0.02 as given, not scaled: SOLVER.REFERENCE_WORLD_SIZE is 0" in " ".join(overview_lines(records([0])))
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    text = " ".join(
        " ".join(
            overview_lines(records([0]), (), 3, "SOLVER.REFERENCE_WORLD_SIZE", 8, "SOLVER.IMS_PER_BATCH", 16)
        ).split()
    )
    assert "0.02 -> 0.005: scaled by the linear rule from SOLVER.REFERENCE_WORLD_SIZE 8 to 2 processes" in text
    assert "with 4x the iterations" in text and "4 images per iteration: 2 on each of 2 processes" in text
    assert "2160 iterations" in text and "x0.1 at 1720, 2000" in text
    text = " ".join(" ".join(overview_lines(records([0]), (), 3, "SOLVER.REFERENCE_WORLD_SIZE", 2)).split())
    assert "0.02 as given, not scaled: the config was written for 2 processes" in text


def test_gradient_accumulation_is_reported(overview_lines, monkeypatch):
    def text(*opts):
        return " ".join(" ".join(overview_lines(records([0]), (), 3, *opts)).split())

    opts = ("SOLVER.IMS_PER_BATCH", 16, "TRAIN.ACCUMULATE", 4)
    assert "16 images per iteration, 4 at a time, on one process" in text(*opts)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    assert "16 images per iteration: 8 on each of 2 processes, 2 at a time" in text(*opts)


def test_speed_and_memory_options_are_reported(overview_lines):
    keys = ["CHECKPOINT_ACTIVATIONS", "CHANNELS_LAST", "COMPILE"]
    lines = overview_lines(
        records([0]),
        (),
        3,
        "MODEL.DEVICE",
        "cpu",
        "SOLVER.AMP.ENABLED",
        True,
        *[w for key in keys for w in (f"TRAIN.{key}", True)],
    )
    text = " ".join(" ".join(lines).split())
    assert (
        "options mixed precision in bfloat16; ResNet activations recomputed; channels_last; compiled backbone" in text
    )


def test_parts_are_listed_with_parameters_and_norms(overview_lines):
    lines = overview_lines(records([0]))
    assert line(lines, "backbone") == ["backbone", "0.00", "0.30", "2 GN of 32 groups, 1 BN*"]
    assert line(lines, "FPN") == ["FPN", "0.01", "0.00", "none"]
    assert line(lines, "mask head")[-1] == "1 GN of 4 groups"
    assert [row.split("  ")[0] for row in lines[-5:]] == ["backbone", "FPN", "box head", "mask head", "all"]


def test_describe_norms_uses_the_names_of_the_paper():
    cfg = load_config("mask_rcnn_R50_FPN_gn", ["MODEL.RESNETS.NORM", "LN", "MODEL.FPN.NORM", "IN"])
    key = "MODEL.%s.NORM"
    layers = [norm.norm_layer(cfg, key % part)(64) for part in ("RESNETS", "FPN", "ROI_BOX_HEAD")]
    assert describe_norms(layers) == "1 LN, 1 IN, 1 GN of 32 groups"
    assert describe_norms([nn.GroupNorm(4, 8), nn.GroupNorm(8, 8)]) == "2 GN of 4 or 8 groups"
    assert describe_norms([nn.GroupNorm(1, 8)]) == "1 GN of 1 group" and describe_norms([nn.BatchNorm2d(3)]) == "1 BN"


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_overview_fits_80_columns(overview_lines, classes):
    dataset = records(*([index] * 10 for index in range(classes)))
    opts = ["TRAIN.EMA.ENABLED", True, "TRAIN.BEST", True, "TRAIN.EARLY_STOP.PATIENCE", 5, "TEST.EVAL_PERIOD", 500]
    lines = overview_lines(dataset, dataset, classes, *opts)
    assert max(map(len, lines)) < 80 and len(lines) < 45


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("MODEL.DEVICE", "cpu"), ""),
        ((), "GPU.MIXED_PRECISION True trains in half precision"),
        (("GPU.MIXED_PRECISION", True), ""),
    ],
)
def test_what_may_be_faster_on_a_gpu_is_said(overview_lines, monkeypatch, options, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    text = " ".join(" ".join(overview_lines(records([0]), (), 3, *options)).split())
    assert (expected in text) if expected else "MIXED_PRECISION" not in text
