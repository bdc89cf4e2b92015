"""The page on a run: its numbers by hand and by detectron2, what goes wrong, and how it looks in a browser."""

import html
import json
import math
import multiprocessing
import re
import runpy
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from gn_det import GNDetError
from gn_det.config.files import load_config
from gn_det.data import shapes
from gn_det.data.coco import read_annotations, register_annotations, register_coco_json
from gn_det.evaluation.evaluator import evaluate_detections
from gn_det.evaluation.run_folder import remember_datasets
from gn_det.launch import run
from gn_det.report import figures, tables, training, write_report
from gn_det.report.analysis import analyse
from gn_det.report.cases import choose
from helpers.paths import COCO_FIXTURE, REPO

NAME = "own_test_report_val"
HOSTILE = ("<script>alert(1)</script>", "</style><img src=http://x.example/a.png>", "$\\frac{1}$ é 苹果 " + "w" * 300)


def square(x: float, y: float, side: float = 40, *, category: int = 3, image: object = 0, **more) -> dict:
    return {"image_id": image, "category_id": category, "bbox": [x, y, side, side], **more}


def by_hand(ids: tuple = (0, 5)) -> tuple[dict, list[dict]]:
    """A truth of a fig, a pear and a crowd of figs in the first of two images; and detections of each sort."""
    truth = {
        "images": [{"id": number, "file_name": "x", "height": 200, "width": 200} for number in ids],
        "categories": [{"id": 9, "name": "plum"}, {"id": 3, "name": "fig"}, {"id": 5, "name": "pear"}],
        "annotations": [
            square(0, 0, image=ids[0]),
            square(100, 100, category=5, image=ids[0]),
            square(0, 100, 90, image=ids[0], iscrowd=1),
        ],
    }
    rows = [
        square(0, 0, image=ids[0], score=0.9),  # right
        square(0, 2, image=ids[0], score=0.8),  # the same fig again
        square(100, 100, image=ids[0], score=0.7),  # a fig where a pear is
        square(10, 110, 30, image=ids[0], score=0.7),  # in the crowd: neither right nor wrong
        square(10, 110, category=5, image=ids[1], score=0.6),  # nothing there
        square(10, 10, category=9, image=ids[1], score=0.4),  # below the score
    ]
    return truth, rows


@pytest.mark.parametrize("ids", [(0, 5), ("a", "b")], ids=str)
def test_confusions_and_outcomes_by_hand(ids):
    truth, rows = by_hand(ids)
    analysis = analyse(truth, rows, 0.5)
    outcome = analysis.outcome
    assert analysis.classes == ["fig", "pear", "plum"] and list(analysis.scores) == ["box"]
    assert outcome.confusion.tolist() == [
        [1, 0, 0, 0],
        [1, 0, 0, 0],  # the pear was taken for a fig
        [0, 0, 0, 0],
        [1, 1, 0, 0],  # no object was left for the second fig and the far pear
    ]
    assert outcome.right.tolist() == [True, False, False, False, False, False]
    assert outcome.wrong.tolist() == [False, True, True, False, True, True]
    assert outcome.found.tolist() == [True, False] and outcome.found_by[0] == 0.9
    assert analysis.scores["box"].class_ap == [pytest.approx(100), 0, None]
    counts = {name: count for name, (_, count) in analysis.scores["box"].errors.items()}
    assert counts == {"Cls": 1, "Dupe": 1, "Bkg": 2, "Loc": 0, "Both": 0, "Miss": 0}


@pytest.mark.slow
def test_a_fork_of_a_process_that_made_a_report_makes_one_too():
    """hotcoco alone would hang there."""
    truth, rows = by_hand()
    expected = analyse(truth, rows, 0.5)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    work = lambda: sender.send(analyse(truth, rows, 0.5).outcome.confusion.tolist())  # noqa: E731
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    try:
        assert receiver.poll(timeout=60) and receiver.recv() == expected.outcome.confusion.tolist()
    finally:
        process.kill()


def test_a_higher_score_hides_detections_and_what_they_found():
    truth, rows = by_hand()
    outcome = analyse(truth, rows, 0.95).outcome
    assert not outcome.found.any() and outcome.confusion.tolist()[0] == [0, 0, 0, 1]


def test_why_each_was_wrong_or_missed():
    truth, rows = by_hand()
    rows += [square(100, 130, category=5, score=0.95, image=0), square(0, 30, category=9, score=0.94, image=0)]
    one = {row["image_id"]: index for index, row in enumerate(rows)}
    assert len(one) == 2
    analysis = analyse(truth, rows, 0.5)
    chosen = choose(analysis, truth, rows, number=9)
    captions = {case.caption for case in chosen["false alarms"]}
    assert captions == {
        "pear, score 0.95: badly placed, IoU 0.14 with the nearest box",
        "pear, score 0.60: no object of any class there",
    }
    (miss,) = chosen["misses"]
    assert miss.caption == "pear, 40 px: taken for fig (0.70)" and miss.image == 0
    assert [case.caption for case in chosen["best"]] == ["1 of 2 objects found, 4 false alarms"]
    assert [case.caption for case in chosen["worst"]] == ["0 of 0 objects found, 1 false alarm"]


@pytest.mark.parametrize(
    ("detection", "alarm", "miss"),
    [
        (square(0, 2, score=0.8), "found a second time", None),
        (square(100, 100, score=0.8), "the truth there is pear", "taken for fig (0.80)"),
        (square(100, 20, score=0.4), None, "pear, 40 px: nothing found there"),
        (square(100, 100, category=5, score=0.3), None, "found, but with score 0.30 only"),
        (square(100, 125, category=5, score=0.8), "badly placed", "a detection overlaps it with IoU 0.23 only"),
        (square(115, 115, category=9, score=0.8), "of another object, and badly placed", "nothing found there"),
    ],
)
def test_reasons_one_by_one(detection, alarm, miss):
    truth, rows = by_hand()
    rows = [rows[0], detection]
    chosen = choose(analyse(truth, rows, 0.5), truth, rows)
    assert [case.caption.split(": ")[1][: len(alarm or "")] for case in chosen["false alarms"]] == [alarm] * bool(alarm)
    if miss:
        assert chosen["misses"][0].caption.endswith(miss)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("report") / "shapes"
    shapes.generate(root, num_train=1, num_val=6, seed=4, size=96)
    return root


def jittered(truth: dict) -> list[dict]:
    """Detections of most objects, some badly placed, some of a wrong class, and false alarms."""
    rng = np.random.default_rng(0)
    rows = []
    for number, row in enumerate(truth["annotations"]):
        x, y, w, h = row["bbox"]
        dx, dy = rng.normal(0, 2 + 12 * (number % 5 == 4), 2)
        points = [(np.reshape(polygon, (-1, 2)) + (dx, dy)).clip(0, 96).ravel() for polygon in row["segmentation"]]
        category = row["category_id"] if number % 4 else 1
        if number % 6 != 5:
            place = {"image_id": row["image_id"], "category_id": category, "bbox": [x + dx, y + dy, w, h]}
            polygons = [polygon.tolist() for polygon in points]
            rows.append({**place, "score": float(rng.uniform(0.3, 1)), "segmentation": _rle(polygons)})
    return rows


def _rle(polygons: list) -> dict:
    from pycocotools import mask

    rle = mask.merge(mask.frPyObjects(polygons, 96, 96))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def forget(name: str) -> None:
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)


def make_run(
    folder: Path, data: Path, rows: list | None, *, images: bool = False, names: tuple = (), truth: dict | None = None
) -> Path:
    """The OUTPUT_DIR of a run as this process would find that of another; with the place of its images, if told."""
    truth = truth or read_annotations(data / "val.json")
    for category, name in zip(truth["categories"], names, strict=False):
        category["name"] = name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "in.json").write_text(json.dumps(truth))
    clean = folder / "data" / f"{NAME}.json"
    if images:
        register_coco_json(NAME, folder / "in.json", data / "val", clean)
    else:
        register_annotations(NAME, folder / "in.json", clean)
    remember_datasets(folder, (NAME,))
    forget(NAME)
    opts = ["DATASETS.TRAIN", f"('{NAME}',)", "DATASETS.TEST", f"('{NAME}',)", "SEED", "3"]
    (folder / "config.yaml").write_text(load_config("quickstart_R18_FPN_gn_scratch", opts).dump())
    lines = [
        {"iteration": n, "total_loss": 3 - n / 100, "loss_cls": 2 - n / 100, "lr": 0.02, "time": 0.5} for n in (19, 39)
    ]
    lines += [{"iteration": n, "bbox/AP": float(n), "segm/AP": float(n)} for n in (20, 40)]
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    if rows is not None:
        path = folder / "inference" / NAME / "coco_instances_results.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(rows))
    return folder


def make_record(folder: Path, **more) -> None:
    record = {
        "config": "quickstart_R18_FPN_gn_scratch",
        "dataset": NAME,
        "box": None,
        "mask": None,
        "date": "2026-01-01",
    }
    (folder / "records").mkdir(exist_ok=True)
    (folder / "records" / "r.json").write_text(json.dumps(record | more))


@pytest.fixture(autouse=True)
def forgotten():
    yield
    forget(NAME)


@pytest.fixture(scope="module")
def run_of_page(data, tmp_path_factory) -> Path:
    """A run with all that a report shows, on classes with hostile names."""
    rows = jittered(read_annotations(data / "val.json"))
    return make_run(tmp_path_factory.mktemp("page") / "out", data, rows, images=True, names=HOSTILE)


@pytest.fixture(scope="module")
def page(run_of_page) -> str:
    path = write_report(run_of_page)
    assert path == run_of_page / "report.html" and list(run_of_page.glob(".*")) == []
    forget(NAME)
    return path.read_text()


def visible(page: str) -> str:
    """The text of the page, without markup."""
    return " ".join(html.unescape(re.sub(r"<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)).split())


def test_all_parts_are_there(page):
    text = visible(page)
    for words in (
        "Result Run Training Classes Curves Confusion Errors Sizes Pictures",
        "6 images, 32 objects",
        "Total loss",
    ):
        assert words in text, words
    for words in ("AP while training", "wrong class", "Best images", "Surest false alarms", "Largest misses"):
        assert words in text, words
    assert "random weights" in text and "backbone GN" in text and "20 s" in text and "Seed 3" in text
    assert page.count("data:image/jpeg;base64,") >= 20 and len(page) < 2e6


def test_ap_on_the_page_is_detectron2s(data, tmp_path):
    """With images out of order and many equal scores, which the COCO API ranks by image id."""
    truth = read_annotations(data / "val.json")
    rows = [{**row, "score": round(row["score"], 1)} for row in jittered(truth)]
    truth["images"].reverse()
    for name, content in (("truth", truth), ("found", rows)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    register_annotations(NAME, tmp_path / "truth.json", tmp_path / "clean.json")
    theirs = evaluate_detections(NAME, tmp_path / "found.json")
    ours = analyse(truth, rows, 0.5)
    for kind, task in (("box", "bbox"), ("mask", "segm")):
        scores = ours.scores[kind]
        for name, value in scores.metrics.items():
            assert value == pytest.approx(theirs[task][name]) or (value is None and math.isnan(theirs[task][name]))
        per_class = [theirs[task][f"AP-{name}"] for name in ours.classes]
        assert scores.class_ap == pytest.approx(per_class) and 10 < scores.metrics["AP"] < 90


def test_of_many_classes_the_most_confused_are_shown():
    """Twenty classes of an object each; the last three go for the first, and one object is missed."""
    truth = {
        "images": [{"id": 1, "file_name": "x", "height": 100, "width": 2000}],
        "categories": [{"id": number, "name": f"c{number}"} for number in range(1, 21)],
        "annotations": [square(100 * n - 100, 0, category=n, image=1) for n in range(1, 21)],
    }
    rows = [square(100 * n - 100, 0, category=1 if n > 17 else n, image=1, score=0.9) for n in range(1, 21) if n != 9]
    analysis = analyse(truth, rows, 0.5)
    matrix = tables.confusion(analysis)
    assert matrix["cut"] and len(matrix["rows"]) == 13 and matrix["names"][-2:] == ["other classes", "background"]
    assert {"c1", "c18", "c19", "c20"} <= set(matrix["names"])
    rows = {name: counts for name, counts, _ in matrix["rows"]}
    assert sum(map(sum, rows.values())) == 20 and rows["c19"][0] == 1
    assert rows["other classes"][-2:] == [8, 1] and "c9" not in rows
    assert [(p["truth"], p["predicted"], p["count"], p["share"]) for p in tables.confused_pairs(analysis)] == [
        (f"c{number}", "c1", 1, 100) for number in (18, 19, 20)
    ]


def test_eighty_classes_and_crowds():
    rows = json.loads((COCO_FIXTURE / "instances_val2014_fakesegm100_results.json").read_text())
    truth = read_annotations(COCO_FIXTURE / "instances_val2014_100.json")
    analysis = analyse(truth, rows, 0.5)
    outcome, matrix = analysis.outcome, tables.confusion(analysis)
    assert analysis.scores["mask"].metrics["AP"] == pytest.approx(31.95452759)
    assert len(matrix["names"]) == 13 and matrix["names"][-2:] == ["other classes", "background"] and matrix["cut"]
    assert sum(sum(counts) for _, counts, _ in matrix["rows"]) == outcome.confusion.sum()
    assert outcome.confusion[:-1].sum() == len(outcome.objects) == 830  # each object is in its row once
    assert sum(row["found"] for row in tables.class_rows(analysis)) == outcome.found.sum()


class _References(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.ids = set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                self.links.append(value)


def test_names_are_text_and_nothing_is_loaded_from_elsewhere(page):
    found = _References()
    found.feed(page)
    assert not found.tags & {"script", "iframe", "object", "embed", "link", "base", "form"}
    outside = [link for link in found.links if not link.startswith(("#", "data:image/jpeg;base64,"))]
    assert outside == [] and len(found.ids) == len(set(found.ids))
    assert {link[1:] for link in found.links if link[0] == "#"} <= set(found.ids)
    (css,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert "@import" not in css and "url(" not in css
    assert {target[0] for target in re.findall(r"url\(\s*['\"]?(.)", page)} <= {"#"}
    assert "default-src 'none'" in page
    assert all(name in visible(page) for name in (HOSTILE[0][:7], HOSTILE[1], HOSTILE[2]) if "<" not in name)
    assert all(html.escape(name).replace("&#x27;", "&#39;") in page for name in HOSTILE)


def test_the_same_run_gives_the_same_bytes(page, run_of_page, tmp_path):
    assert write_report(run_of_page, tmp_path / "again.html").read_text() == page


def test_nothing_found(data, tmp_path):
    text = visible(write_report(make_run(tmp_path / "out", data, [])).read_text())
    assert "The model found nothing at all." in text and "objects found 0 of 32" in text and "mask AP 0.0 0.0" in text


def test_nothing_to_find(data, tmp_path):
    truth = read_annotations(data / "val.json")
    rows = jittered(truth)
    folder = make_run(tmp_path / "out", data, rows, truth=truth | {"annotations": []})
    text = visible(write_report(folder).read_text())
    assert "The data set has no objects." in text and "box AP – – –" in text and "objects found 0 of 0" in text


def test_a_model_without_masks_has_no_mask_ap(data, tmp_path):
    folder = make_run(tmp_path / "out", data, [])
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("MASK_ON: true", "MASK_ON: false"))
    assert "mask AP 0.0" not in visible(write_report(folder).read_text())


def test_without_the_images_there_are_no_pictures(data, tmp_path):
    moved = tmp_path / "data"
    shutil.copytree(data, moved)
    folder = make_run(tmp_path / "out", moved, jittered(read_annotations(data / "val.json")), images=True)
    (moved / "val" / "000001.png").write_text("not an image")
    shutil.copy(moved / "val" / "000002.png", moved / "secret.png")
    (moved / "val" / "000002.png").unlink()
    page = write_report(folder).read_text()
    assert re.search(r"\d images could not be read and are not shown", page) and "<img" in page
    shutil.rmtree(moved / "val")
    page = write_report(folder).read_text()
    assert f"The images of {NAME} are not there, so no pictures are shown." in page and "<img" not in page
    assert "Most confused" in page or "Confusion" in page


def test_pictures_never_come_from_outside_the_image_folder(data, tmp_path):
    moved = tmp_path / "data"
    shutil.copytree(data, moved)
    folder = make_run(tmp_path / "out", moved, jittered(read_annotations(data / "val.json")), images=True)
    (moved / "val").rename(moved / "elsewhere")
    (moved / "val").mkdir()
    path = folder / "data" / f"{NAME}.json"
    path.write_text(path.read_text().replace('"file_name": "', '"file_name": "../elsewhere/'))
    assert "<img" not in write_report(folder).read_text()


def test_without_opencv_it_says_so(data, tmp_path, monkeypatch):
    folder = make_run(tmp_path / "out", data, jittered(read_annotations(data / "val.json")), images=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "drawing needs OpenCV" in write_report(folder).read_text()


def test_a_run_without_evaluation_has_its_curves(data, tmp_path):
    text = visible(write_report(make_run(tmp_path / "out", data, None)).read_text())
    assert "This run was not evaluated" in text and "Learning rate" in text and "Confusion" not in text


def test_without_detections_the_record_is_shown(data, tmp_path):
    folder = make_run(tmp_path / "out", data, None)
    make_record(folder, box={"AP": 41.25, "AP-circle": 50.5, "AP-square": 60.5})
    text = visible(write_report(folder).read_text())
    assert "are gone, so there is nothing here beyond its record" in text and "box AP 41.2" in text
    assert text.index("square 60.5") < text.index("circle 50.5")


def test_where_nothing_was_trained_no_training_is_told(data, tmp_path):
    folder = make_run(tmp_path / "out", data, [])
    assert "Trained on" in write_report(folder).read_text()
    (folder / "metrics.json").unlink()
    page = write_report(folder).read_text()
    assert "Trained on" not in page and "Schedule" not in page and "no metrics.json with the course" in page


def test_without_annotations_it_says_so(data, tmp_path):
    folder = make_run(tmp_path / "out", data, [])
    (folder / "data" / f"{NAME}.json").unlink()
    assert f"{NAME}.json is gone), so there is nothing here beyond its record" in write_report(folder).read_text()
    forget(NAME)
    (folder / "data" / "datasets.json").unlink()
    assert "the run did not note where they lie" in write_report(folder).read_text()


def test_a_record_of_another_evaluation_is_told(data, tmp_path):
    rows = jittered(read_annotations(data / "val.json"))
    folder = make_run(tmp_path / "out", data, rows)
    ap = analyse(read_annotations(data / "val.json"), rows, 0.5).scores["box"].metrics["AP"]
    make_record(folder, box={"AP": round(ap, 4)})
    assert "they are of different evaluations" not in write_report(folder).read_text()
    make_record(folder, box={"AP": round(ap, 4) + 1})
    assert "they are of different evaluations" in write_report(folder).read_text()


def test_the_papers_row_stands_beside_results_on_the_papers_data_only(data, tmp_path):
    folder = make_run(tmp_path / "out", data, None)
    paper = {"source": "paper, Table 6", "box": {"AP": 40.3, "AP50": 61.0, "AP75": 44.0}, "mask": None}
    make_record(folder, box={"AP": 20.0}, published=paper)
    text = visible(write_report(folder).read_text())
    assert "40.3" not in text and "cannot be compared with it" in text
    make_record(folder, box={"AP": 20.0}, published=paper, dataset="coco_2017_val")
    text = visible(write_report(folder, dataset="coco_2017_val").read_text())
    assert "box AP, paper, Table 6 40.3 61.0 44.0 – – –" in text and "cannot be compared" not in text
    assert (folder / "report-coco_2017_val.html").is_file()


def test_curves_of_the_training():
    rows = [
        {"iteration": n, "total_loss": 2.0 if n else 900.0, "loss_a": 1.0, "lr": 0.1, "time": 0.5} for n in range(99)
    ]
    drawn = {drawing.title: drawing for drawing in training.drawings(rows)}
    assert list(drawn) == ["Total loss", "Its parts", "Learning rate"]
    assert drawn["Total loss"].note == "1 value up to 900 above the drawing."
    assert (
        training.seconds(rows) == pytest.approx(49.5) and training.seconds([]) is None and training.drawings([]) == []
    )
    rows = [{"iteration": n, f"{name}/bbox/AP": 1.0} for n in (1, 2) for name in "ab"]
    (ap,) = training.drawings(rows)
    assert [label for label, _ in ap.legend] == ["a box AP", "b box AP"]


def test_a_long_curve_is_drawn_by_means():
    line = figures._thinned(figures.Line("x", np.arange(2000.0), np.ones(2000)))
    assert len(line.x) == 500 and line.x[0] == 1.5 and set(line.y) == {1.0}


MISTAKES = {
    "not a folder": (lambda f: shutil.rmtree(f), {}, "is not there: give the OUTPUT_DIR"),
    "no run": (lambda f: (f / "config.yaml").unlink(), {}, "has no config.yaml"),
    "broken config": (lambda f: (f / "config.yaml").write_text("a: ["), {}, "is not a plain YAML config"),
    "other data set": (lambda f: None, {"dataset": "x"}, f"no evaluation on x: there is one on {NAME}"),
    "broken detections": (lambda f: results(f).write_text("["), {}, "cannot be read"),
    "other format": (lambda f: results(f).write_text("[1]"), {}, "not in COCO's result format"),
    "other images": (
        lambda f: results(f).write_text('[{"image_id": 99, "category_id": 1, "score": 1, "bbox": []}]'),
        {},
        "image_id 99",
    ),
    "no boxes": (
        lambda f: results(f).write_text('[{"image_id": 1, "category_id": 1, "score": 1, "bbox": "x"}]'),
        {},
        "1 detections have a bbox that is not a finite number",
    ),
    "spoilt annotations": (
        lambda f: (f / "data" / f"{NAME}.json").write_text('{"images": [{}], "annotations": [], "categories": []}'),
        {},
        "cannot be evaluated with the annotations there (KeyError: 'id')",
    ),
    "broken annotations": (lambda f: (f / "data" / f"{NAME}.json").write_text("{"), {}, "cannot be read as JSON"),
    "broken list": (lambda f: (f / "data" / "datasets.json").write_text("{"), {}, "cannot be read as JSON"),
    "score": (lambda f: None, {"min_score": 1.5}, "not between 0 and 1"),
    "out is a folder": (lambda f: (f.parent / "x").mkdir(), {"out": "x"}, "cannot be written"),
    "out": (lambda f: None, {"out": "/proc/x/report.html"}, "cannot be written"),
}


def results(folder: Path) -> Path:
    return folder / "inference" / NAME / "coco_instances_results.json"


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(name, data, tmp_path, monkeypatch):
    spoil, arguments, sentence = MISTAKES[name]
    folder = make_run(tmp_path / "out", data, [])
    spoil(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GNDetError) as error:
        write_report(folder, **arguments)
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.html*")) and not list(tmp_path.rglob("*.part"))


def test_the_tool(data, tmp_path, monkeypatch, capsys):
    folder = make_run(tmp_path / "out", data, [])
    monkeypatch.setattr(
        sys, "argv", ["report.py", str(folder), "--out", str(tmp_path / "x.html"), "--min-score", "0.7"]
    )
    runpy.run_path(str(REPO / "tools" / "report.py"), run_name="__main__")
    assert capsys.readouterr().out.strip() == str(tmp_path / "x.html")
    assert "score 0.7 or more" in visible((tmp_path / "x.html").read_text())
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(REPO / "tools" / "report.py"), run_name="__main__")
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("error: ")


def test_a_report_that_fails_does_not_fail_the_training(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(run.logger, "warning", said.append)
    run._report(tmp_path)  # no run there
    monkeypatch.setattr("gn_det.report.write_report", lambda folder: 1 / 0)
    run._report(tmp_path)
    assert "has no config.yaml" in said[0]
    assert said[1] == "No report was written (ZeroDivisionError: division by zero)."


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=10000""".split()
MEASURE = """
<!DOCTYPE html><meta charset="utf-8"><pre id="out"></pre><script>
function measure(frame) {
  const page = frame.contentDocument, root = page.documentElement, small = [];
  const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode, parent = text.parentElement;
    if (!text.data.trim()) continue;
    const svg = parent.closest('svg');
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    const size = parseFloat(getComputedStyle(parent).fontSize) * scale;
    if (size < (svg ? 10 : 12)) small.push([parent.tagName, text.data.slice(0, 20), size]);
  }
  const wide = [...page.querySelectorAll('main *')].filter(
    element => !element.closest('.scroll') && element.getBoundingClientRect().right > root.clientWidth + 1);
  const images = [...page.images];
  return {
    width: root.clientWidth, scroll: root.scrollWidth, small, wide: wide.map(element => element.outerHTML.slice(0, 80)),
    images: images.length, broken: images.filter(image => !image.complete || !image.naturalWidth).length,
    drawings: page.querySelectorAll('svg').length, family: getComputedStyle(page.querySelector('svg text')).fontFamily,
  };
}
window.onload = () => {
  document.getElementById('out').textContent = JSON.stringify([...document.querySelectorAll('iframe')].map(measure));
};
</script>
"""


@pytest.fixture(scope="module")
def measured(page, tmp_path_factory) -> tuple[list[dict], str]:
    """What a browser measures of the page at desktop and phone width, and what it says on its console."""
    if BROWSER is None:
        pytest.skip("no chromium here")
    folder = tmp_path_factory.mktemp("browser")
    frames = [f'<iframe width="{width}" height="900" srcdoc="{html.escape(page)}"></iframe>' for width in (1280, 390)]
    (folder / "wrapper.html").write_text(MEASURE + "".join(frames))
    command = [
        BROWSER,
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        "--dump-dom",
        (folder / "wrapper.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return json.loads(html.unescape(found[1])), console


@pytest.mark.parametrize("index", [0, 1], ids=["desktop", "phone"])
def test_in_a_browser_nothing_is_cut_off_or_too_small(measured, index):
    view = measured[0][index]
    assert view["scroll"] <= view["width"] and view["wide"] == [], view["wide"]
    assert view["small"] == []
    assert view["images"] >= 20 and view["broken"] == 0 and view["drawings"] >= 8
    assert "DejaVu" not in view["family"]


def test_in_a_browser_nothing_is_blocked_or_wrong(measured):
    assert measured[1] == ""
