"""The analysis agrees with results by hand and with detectron2's evaluator."""

import json
import math
import multiprocessing

import pytest

from gn_det.data.coco import read_annotations, register_annotations
from gn_det.evaluation.evaluator import evaluate_detections
from gn_det.report import tables
from gn_det.report.analysis import analyze_detections
from helpers.paths import COCO_FIXTURE
from helpers.reports import NAME, fruit, jittered, square


@pytest.mark.parametrize("ids", [(0, 5), ("a", "b")], ids=str)
def test_confusion_matrix_and_matches_by_hand(ids):
    truth, rows = fruit(ids)
    analysis = analyze_detections(truth, rows, 0.5)
    outcome = analysis.outcome
    assert analysis.classes == ["fig", "pear", "plum"] and list(analysis.scores) == ["box"]
    assert outcome.confusion.tolist() == [
        [1, 0, 0, 0],
        [1, 0, 0, 0],  # the pear was detected as a fig
        [0, 0, 0, 0],
        [1, 1, 0, 0],  # the second fig and the pear in the other image match no object
    ]
    assert outcome.right.tolist() == [True, False, False, False, False, False]
    assert outcome.wrong.tolist() == [False, True, True, False, True, True]
    assert outcome.found.tolist() == [True, False] and outcome.match_score[0] == 0.9
    assert analysis.scores["box"].class_ap == [pytest.approx(100), 0, None]
    counts = {name: count for name, (_, count) in analysis.scores["box"].errors.items()}
    assert counts == {"Cls": 1, "Dupe": 1, "Bkg": 2, "Loc": 0, "Both": 0, "Miss": 0}


@pytest.mark.slow
def test_fork_of_a_process_that_used_hotcoco_does_not_hang():
    """hotcoco itself would wait forever for its threads."""
    truth, rows = fruit()
    expected = analyze_detections(truth, rows, 0.5)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    work = lambda: sender.send(analyze_detections(truth, rows, 0.5).outcome.confusion.tolist())  # noqa: E731
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    try:
        assert receiver.poll(timeout=60) and receiver.recv() == expected.outcome.confusion.tolist()
    finally:
        process.kill()


def test_minimum_score_hides_detections_and_the_objects_that_they_found():
    truth, rows = fruit()
    outcome = analyze_detections(truth, rows, 0.95).outcome
    assert not outcome.found.any() and outcome.confusion.tolist()[0] == [0, 0, 0, 1]


def test_ap_equals_that_of_detectron2(data, tmp_path):
    """The images are not sorted, and many scores are equal: the COCO API ranks these by image id."""
    truth = read_annotations(data / "val.json")
    rows = [{**row, "score": round(row["score"], 1)} for row in jittered(truth)]
    truth["images"].reverse()
    for name, content in (("truth", truth), ("found", rows)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    register_annotations(NAME, tmp_path / "truth.json", tmp_path / "clean.json")
    expected = evaluate_detections(NAME, tmp_path / "found.json")
    analysis = analyze_detections(truth, rows, 0.5)
    for kind, task in (("box", "bbox"), ("mask", "segm")):
        scores = analysis.scores[kind]
        for name, value in scores.metrics.items():
            assert value == pytest.approx(expected[task][name]) or (value is None and math.isnan(expected[task][name]))
        per_class = [expected[task][f"AP-{name}"] for name in analysis.classes]
        assert scores.class_ap == pytest.approx(per_class) and 10 < scores.metrics["AP"] < 90


def test_confusion_matrix_shows_the_most_confused_of_many_classes():
    """Twenty classes have one object each. The last three are detected as the first, and one object is missed."""
    truth = {
        "images": [{"id": 1, "file_name": "x", "height": 100, "width": 2000}],
        "categories": [{"id": number, "name": f"c{number}"} for number in range(1, 21)],
        "annotations": [square(100 * n - 100, 0, category=n, image=1) for n in range(1, 21)],
    }
    rows = [square(100 * n - 100, 0, category=1 if n > 17 else n, image=1, score=0.9) for n in range(1, 21) if n != 9]
    analysis = analyze_detections(truth, rows, 0.5)
    matrix = tables.confusion_matrix(analysis)
    assert matrix["cut"] and len(matrix["rows"]) == 13 and matrix["names"][-2:] == ["other classes", "background"]
    assert {"c1", "c18", "c19", "c20"} <= set(matrix["names"])
    rows = {name: counts for name, counts, _ in matrix["rows"]}
    assert sum(map(sum, rows.values())) == 20 and rows["c19"][0] == 1
    assert rows["other classes"][-2:] == [8, 1] and "c9" not in rows
    assert [(p["truth"], p["predicted"], p["count"], p["share"]) for p in tables.confused_pairs(analysis)] == [
        (f"c{number}", "c1", 1, 100) for number in (18, 19, 20)
    ]


def test_coco_fixture_with_80_classes_and_crowds():
    rows = json.loads((COCO_FIXTURE / "instances_val2014_fakesegm100_results.json").read_text())
    truth = read_annotations(COCO_FIXTURE / "instances_val2014_100.json")
    analysis = analyze_detections(truth, rows, 0.5)
    outcome, matrix = analysis.outcome, tables.confusion_matrix(analysis)
    assert analysis.scores["mask"].metrics["AP"] == pytest.approx(31.95452759)
    assert len(matrix["names"]) == 13 and matrix["names"][-2:] == ["other classes", "background"] and matrix["cut"]
    assert sum(sum(counts) for _, counts, _ in matrix["rows"]) == outcome.confusion.sum()
    assert outcome.confusion[:-1].sum() == len(outcome.objects) == 830  # each object is counted once, in its row
    assert sum(row["found"] for row in tables.class_rows(analysis)) == outcome.found.sum()
