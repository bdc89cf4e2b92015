"""Runs are compared by mean and spread over seeds, in a table and a figure."""

import json
import math
import statistics

import pytest

from gn_det import GNDetError
from gn_det.evaluation.comparison import (
    difference,
    draw_runs,
    load_runs,
    mean_and_spread,
    paper_rows,
    runs_table,
)


def record(box_ap: float, seed: int = 1, **more) -> dict:
    box = {"AP": box_ap, "AP50": box_ap + 20, "AP75": box_ap + 5}
    fields = {"config": "custom", "config_sha256": "a" * 64, "changed": {}, "dataset": "shapes_val", "box": box}
    return fields | {"mask": None, "seed": seed, "iteration": 100} | more


def write(path, *records: dict):
    path.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(records):
        (path / f"{number}.json").write_text(json.dumps(row))
    return path


def test_spread_is_the_sample_standard_deviation():
    assert mean_and_spread([10, 12, 14]) == "12.0 ± 2.0"  # sqrt((4 + 0 + 4) / 2)
    assert mean_and_spread([10.04]) == "10.0"


def test_difference_has_a_standard_error():
    one, two = [10.0, 12.0, 14.0], [11.0, 13.0]
    error = math.sqrt(statistics.variance(one) / 3 + statistics.variance(two) / 2)
    assert difference(one, two) == f"+0.0 ± {error:.1f}" == "+0.0 ± 1.5"
    assert difference([9.0], two) == "-3.0"  # one value has no spread


def test_seeds_of_one_recipe_are_one_row(tmp_path):
    one = write(tmp_path / "one" / "records", record(40.0)).parent
    two = write(tmp_path / "two" / "records", record(42.0, seed=2)).parent
    other = write(tmp_path / "other", record(30.0, config_sha256="b" * 64, changed={"SOLVER.BASE_LR": 0.5}))
    rows = load_runs([one, other, two, one])
    assert [row.values("box", "AP") for row in rows] == [[40.0, 42.0], [30.0]]
    assert [row.name for row in rows] == ["custom", "custom BASE_LR=0.5"]


def test_rows_are_named_by_the_keys_that_differ(tmp_path):
    shared = {"SOLVER.MAX_ITER": 7}
    bn = {"MODEL.FPN.NORM": "BN", "MODEL.RESNETS.NORM": "BN", "SOLVER.BASE_LR": 0.5, "A.B": 1, "C.D": 2}
    folder = write(tmp_path, record(1, changed=shared), record(2, config_sha256="b", changed=shared | bn))
    assert [row.name for row in load_runs([folder])] == ["custom", "custom NORM=BN (2 keys) BASE_LR=0.5 B=1 (+1 more)"]


def test_named_path_is_a_separate_row(tmp_path):
    one = write(tmp_path / "one", record(40.0))
    assert [row.name for row in load_runs([f"GN=groups={one}", one])] == ["GN=groups", "custom"]


def test_only_the_last_evaluation_of_a_training_counts(tmp_path):
    folder = write(tmp_path / "records", record(50.0, iteration=200), record(40.0, iteration=100))
    (row,) = load_runs([folder])
    assert row.values("box", "AP") == [50.0]


def test_equal_names_get_different_suffixes(tmp_path):
    folder = write(tmp_path, record(40.0), record(41.0, config_sha256="b" * 64))
    names = [row.name for row in load_runs([folder])]
    assert len(set(names)) == 2 and all(name.startswith("custom [") for name in names)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "has no record; pass the OUTPUT_DIR"),
        ("[1]", "is not a JSON object"),
        ("{", "cannot be read"),
        ('{"box": {}}', "it has no config_sha256, dataset, mask, seed"),
    ],
)
def test_files_that_are_not_records_are_refused(tmp_path, content, sentence):
    if content:
        (tmp_path / "x.json").write_text(content)
    with pytest.raises(GNDetError, match=sentence):
        load_runs([tmp_path])


def test_records_on_different_data_sets_are_refused(tmp_path):
    folder = write(tmp_path, record(40.0), record(40.0, config_sha256="b", dataset="coco_2017_val"))
    with pytest.raises(GNDetError, match="on different datasets: coco_2017_val, shapes_val, so"):
        load_runs([folder])


def identity(digest: str, images: int = 40) -> dict:
    return {"digest": f"content:{digest * 64}", "images": images, "objects": 2 * images}


def test_runs_on_different_training_data_are_different_rows(tmp_path):
    """Names of datasets are not unique: they are those of folders."""
    rows = [
        record(40.0, 1, train_data={"own_data_train": identity("a")}),
        record(30.0, 2, train_data={"own_data_train": identity("b", images=10)}),
        record(42.0, 3, train_data={"own_other_train": identity("a")}),
        record(50.0, 4),  # written by an older version
    ]
    first, second, old = load_runs([write(tmp_path, *rows)])
    assert (first.values("box", "AP"), second.values("box", "AP")) == ([40.0, 42.0], [30.0])
    assert first.name == "custom, trained on own_data_train (40 images, 80 objects, digest aaaaaaaa)"
    assert second.name == "custom, trained on own_data_train (10 images, 20 objects, digest bbbbbbbb)"
    assert old.name == "custom, trained on unknown data"


def test_test_data_are_compared_by_content(tmp_path):
    same = [record(40.0, 1, data=identity("a")), record(42.0, 2, data=identity("a"), dataset="shapes_val")]
    (row,) = load_runs([write(tmp_path / "same", *same, record(44.0, 3))])
    assert row.values("box", "AP") == [40.0, 42.0, 44.0]
    (row,) = load_runs([write(tmp_path / "renamed", same[0], record(42.0, 2, data=identity("a"), dataset="other"))])
    assert len(row.records) == 2
    other = record(42.0, 2, data=identity("b", images=3))
    sentence = r"shapes_val \(3 images, 6 objects, digest bbbbbbbb\), shapes_val \(40 images, 80 objects"
    with pytest.raises(GNDetError, match=sentence):
        load_runs([write(tmp_path / "other", same[0], other)])


def test_one_of_several_test_sets_is_selected(tmp_path):
    """Two runs of a recipe, each with two test sets."""
    rows = [
        record(ap, seed, dataset=name) for ap, seed, name in ((40, 1, "a"), (30, 1, "b"), (42, 2, "a"), (32, 2, "b"))
    ]
    folder = write(tmp_path, *rows)
    with pytest.raises(GNDetError, match="on different datasets: a, b, .* or name it with --dataset"):
        load_runs([folder])
    (row,) = load_runs([folder], "b")
    assert row.values("box", "AP") == [30, 32]
    with pytest.raises(GNDetError, match="no record of an evaluation on 'c'; use one of 'a', 'b'"):
        load_runs([folder], "c")


def test_evaluations_of_the_same_weights_count_once(tmp_path):
    folder = write(tmp_path, *(record(40.0, seed, weights_sha256=sha) for seed, sha in ((1, "a"), (2, "a"), (3, "b"))))
    (row,) = load_runs([folder])
    assert len(row.records) == 2


def test_a_training_and_an_evaluation_of_its_weights_count_once(tmp_path):
    trained = write(tmp_path / "run", record(40.0), record(42.0, seed=2))
    evaluated = write(tmp_path / "evaluation", record(40.0, weights_sha256="a"))
    (row,) = load_runs([trained, evaluated])
    assert row.values("box", "AP") == [40.0, 42.0]


@pytest.mark.parametrize("value", [1, "x", [1], {"digest": 3}, {"a": 1}])
def test_malformed_identities_are_ignored(tmp_path, value):
    (row,) = load_runs([write(tmp_path, record(40.0, data=value, train_data=value))])
    assert row.values("box", "AP") == [40.0]


def test_table_has_differences_and_published_rows(tmp_path):
    rows = load_runs([write(tmp_path, record(40.0), record(42.0, 2), record(45.0, config_sha256="b", config="new"))])
    first, second, paper = runs_table(rows, paper_rows(["mask_rcnn_R50_FPN_gn"])).splitlines()[2:]
    assert "| 2 " in first and "41.0 ± 1.4" in first and "+" not in first
    assert "45.0" in second and "+4.0" in second
    assert "COCO val2017" in paper and " 40.3 " in paper and " 35.7 " in paper and "-0.7" not in paper


@pytest.mark.parametrize("name", ["nope", "mask_rcnn_R50_FPN_bn_4conv1fc"])
def test_config_without_a_published_result_is_refused(name):
    with pytest.raises(GNDetError, match=f"no result for the config '{name}'"):
        paper_rows([name])


def test_diverged_run_has_ap_0(tmp_path):
    folder = write(tmp_path, record(40.0), record(0, 2, box=None, diverged=12))
    assert load_runs([folder])[0].values("box", "AP") == [40.0, 0.0]


def test_figure_is_saved(tmp_path):
    rows = load_runs([write(tmp_path / "runs", record(40.0), record(42.0, 2))])
    draw_runs(rows, tmp_path / "new" / "all.png", paper_rows(["mask_rcnn_R50_FPN_gn"]))
    assert (tmp_path / "new" / "all.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(GNDetError, match=r"all\.foo cannot be written: Format 'foo' is not supported"):
        draw_runs(rows, tmp_path / "all.foo")
