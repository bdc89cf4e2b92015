"""Result records: the digest of the recipe, changed keys, reading, writing and the table."""

import json
import math

import pytest

from gn_det.config.files import load_config
from gn_det.evaluation.records import (
    changed_keys,
    config_digest,
    format_table,
    past_values,
    read_record,
    write_record,
)
from helpers.paths import REPO


def row(**more) -> dict:
    metrics = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl"), 12.34)
    paper = {"source": "paper, Table 6", "box": {"AP": 40.3, "AP50": 61.0, "AP75": 44.0}, "mask": None}
    record = {
        "config": "x",
        "changed": {},
        "dataset": "coco_2017_val",
        "box": metrics,
        "mask": metrics,
        "published": paper,
    }
    return record | more


def test_digest_changes_with_the_recipe_and_not_with_the_machine():
    digest = config_digest(load_config("mask_rcnn_R50_FPN_gn"))
    assert digest == config_digest(
        load_config("mask_rcnn_R50_FPN_gn", ["OUTPUT_DIR", "x", "SEED", "3", "TEST.FAST_COCO", "False"])
    )
    assert digest != config_digest(load_config("mask_rcnn_R50_FPN_gn", ["MODEL.GN.EPS", "1e-4"]))


def test_changed_keys_differ_from_the_shipped_config(tmp_path):
    cfg = load_config("mask_rcnn_R50_FPN_gn", ["SOLVER.MAX_ITER", "10", "OUTPUT_DIR", "x"])
    assert changed_keys(cfg) == {"SOLVER.MAX_ITER": 10}
    (tmp_path / "custom.yaml").write_text("VERSION: 2\n")
    assert changed_keys(load_config(str(tmp_path / "custom.yaml"))) is None


def test_config_yaml_of_a_run_keeps_the_name(tmp_path):
    (tmp_path / "config.yaml").write_text(load_config("mask_rcnn_R50_FPN_gn").dump())
    assert load_config(str(tmp_path / "config.yaml")).MODEL.GN.CONFIG == "mask_rcnn_R50_FPN_gn"


def test_table_has_the_published_row_on_coco_only():
    table = format_table(row(mask=None))
    (measured, published) = table.splitlines()[-2:]
    assert measured.startswith("| box AP") and measured.count("12.3") == 6
    assert "paper, Table 6" in published and "40.3" in published and published.count("-") == 3
    assert max(map(len, table.splitlines())) < 100  # fits into a terminal
    assert "Table 6" not in format_table(row(dataset="fruits_val"))
    assert "Table 6" not in format_table(row(published=None))
    assert "2 keys changed" in format_table(row(changed={"a": 1, "b": 2}))


def test_record_is_written_without_temporary_files(tmp_path):
    path = write_record(tmp_path, row(iteration=None))
    assert path.name == "x-coco_2017_val.json" and json.loads(path.read_text())["box"]["AP"] == 12.34
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_each_evaluation_of_other_weights_settings_or_data_has_a_record_of_its_own(tmp_path):
    evaluated = row(iteration=4, weights_sha256="a" * 64, config_sha256="c" * 64, data={"digest": "content:1"})
    changes = [{}, {"weights_sha256": "b" * 64}, {"config_sha256": "d" * 64}, {"data": {"digest": "content:2"}}]
    names = [write_record(tmp_path, evaluated | change).name for change in [*changes, {"seed": 2}]]
    assert len(set(names)) == 4 and names[0] == names[-1]
    assert names[0].startswith("x-coco_2017_val-aaaaaaaa-") and names[1].startswith("x-coco_2017_val-bbbbbbbb-")
    assert past_values(tmp_path, "coco_2017_val", "bbox/AP", until=9) == {}  # none is of a training


def test_keys_added_later_do_not_change_the_digest():
    name = "quickstart_R18_FPN_gn_scratch"
    before = load_config(name)
    del before["TRAIN"]
    assert config_digest(load_config(name, ["TRAIN.BEST", "True", "TRAIN.PICTURES", "0"])) == config_digest(before)
    for same in ("CHECKPOINT_ACTIVATIONS", "CHANNELS_LAST", "COMPILE"):
        assert config_digest(load_config(name, [f"TRAIN.{same}", "True"])) == config_digest(before)
    assert config_digest(load_config(name, ["TRAIN.ACCUMULATE", "2"])) != config_digest(before)
    assert config_digest(load_config(name, ["TRAIN.EMA.ENABLED", "True"])) != config_digest(before)
    assert changed_keys(load_config(name, ["TRAIN.BEST", "True", "TRAIN.EMA.DECAY", "0.9"])) == {"TRAIN.EMA.DECAY": 0.9}


def test_past_values_of_a_metric(tmp_path):
    for iteration, ap in ((30, 3.0), (10, 1.0), (20, None), (40, 4.0), (None, 9.0)):
        write_record(tmp_path, row(iteration=iteration, box={"AP": ap}, dataset="shapes"))
    write_record(tmp_path, row(iteration=10, dataset="other"))
    values = past_values(tmp_path, "shapes", "bbox/AP", until=30)
    assert values == {10: 1.0, 20: pytest.approx(math.nan, nan_ok=True), 30: 3.0}
    assert past_values(tmp_path, "other", "segm/AP75", until=30) == {10: 12.34}
    assert past_values(tmp_path / "new", "shapes", "bbox/AP", until=30) == {}


def test_digest_of_the_demo_equals_its_record():
    record = read_record(REPO / "results" / "quickstart_R18_FPN_gn_scratch-shapes_val.json")
    assert config_digest(load_config("quickstart_R18_FPN_gn_scratch")) == record["config_sha256"]
