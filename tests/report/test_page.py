"""The page of a report: its sections, its notes on missing files, and that it is safe and self-contained."""

import html
import re
import runpy
import shutil
import sys
from html.parser import HTMLParser

import pytest

from gn_det import GNDetError
from gn_det.data.coco import read_annotations
from gn_det.launch import run
from gn_det.report import write_report
from gn_det.report.analysis import analyze_detections
from helpers.paths import REPO
from helpers.reports import NAME, detections_file, jittered, make_run, unregister, visible, write_record


def test_page_has_all_sections(page):
    text = visible(page)
    for words in (
        "Result Run Training Classes Curves Confusion Errors Sizes Pictures",
        "6 images, 32 objects",
        "Total loss",
        "AP during training",
        "wrong class",
        "Best images",
        "False positives with the highest scores",
        "Largest missed objects",
    ):
        assert words in text, words
    assert "random weights" in text and "backbone GN" in text and "20 s" in text and "Seed 3" in text
    assert page.count("data:image/jpeg;base64,") >= 20 and len(page) < 2e6


class _References(HTMLParser):
    """Collects tags, ids and links."""

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


def test_page_escapes_names_and_loads_nothing(page, hostile_names):
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
    assert all(html.escape(name).replace("&#x27;", "&#39;") in page for name in hostile_names)
    assert hostile_names[2] in visible(page)


def test_same_run_gives_the_same_bytes(page, full_run, tmp_path):
    assert write_report(full_run, tmp_path / "again.html").read_text() == page


def test_no_detections(data, tmp_path):
    text = visible(write_report(make_run(tmp_path / "out", data, [])).read_text())
    assert "The model detected nothing." in text and "objects found 0 of 32" in text and "mask AP 0.0 0.0" in text


def test_no_objects(data, tmp_path):
    truth = read_annotations(data / "val.json")
    rows = jittered(truth)
    folder = make_run(tmp_path / "out", data, rows, truth=truth | {"annotations": []})
    text = visible(write_report(folder).read_text())
    assert "The dataset has no objects." in text and "box AP – – –" in text and "objects found 0 of 0" in text


def test_model_without_masks_has_no_mask_ap(data, tmp_path):
    folder = make_run(tmp_path / "out", data, [])
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("MASK_ON: true", "MASK_ON: false"))
    assert "mask AP 0.0" not in visible(write_report(folder).read_text())


def test_run_without_evaluation_has_training_curves(data, tmp_path):
    text = visible(write_report(make_run(tmp_path / "out", data, None)).read_text())
    assert "This run was not evaluated" in text and "Learning rate" in text and "Confusion" not in text


def test_without_detections_the_record_is_shown(data, tmp_path):
    folder = make_run(tmp_path / "out", data, None)
    write_record(folder, box={"AP": 41.25, "AP-circle": 50.5, "AP-square": 60.5})
    text = visible(write_report(folder).read_text())
    assert "were not found, so this report only shows the record of the evaluation." in text and "box AP 41.2" in text
    assert text.index("square 60.5") < text.index("circle 50.5")


def test_without_metrics_there_are_no_facts_on_training(data, tmp_path):
    folder = make_run(tmp_path / "out", data, [])
    assert "Trained on" in write_report(folder).read_text()
    (folder / "metrics.json").unlink()
    page = write_report(folder).read_text()
    assert "Trained on" not in page and "Schedule" not in page
    assert "The run has no metrics.json, so no training curves are shown." in page


def test_missing_annotations_are_reported(data, tmp_path):
    folder = make_run(tmp_path / "out", data, [])
    (folder / "data" / f"{NAME}.json").unlink()
    text = write_report(folder).read_text()
    assert f"{NAME}.json does not exist), so the detections were not analyzed." in text
    unregister(NAME)
    (folder / "data" / "datasets.json").unlink()
    assert "the run did not save their path" in write_report(folder).read_text()


def test_record_of_another_evaluation_is_reported(data, tmp_path):
    rows = jittered(read_annotations(data / "val.json"))
    folder = make_run(tmp_path / "out", data, rows)
    ap = analyze_detections(read_annotations(data / "val.json"), rows, 0.5).scores["box"].metrics["AP"]
    write_record(folder, box={"AP": round(ap, 4)})
    assert "they are from different evaluations" not in write_report(folder).read_text()
    write_record(folder, box={"AP": round(ap, 4) + 1})
    assert "they are from different evaluations" in write_report(folder).read_text()


def test_published_row_is_shown_on_coco_only(data, tmp_path):
    folder = make_run(tmp_path / "out", data, None)
    paper = {"source": "paper, Table 6", "box": {"AP": 40.3, "AP50": 61.0, "AP75": 44.0}, "mask": None}
    write_record(folder, box={"AP": 20.0}, published=paper)
    text = visible(write_report(folder).read_text())
    assert "40.3" not in text and "cannot be compared with it" in text
    write_record(folder, box={"AP": 20.0}, published=paper, dataset="coco_2017_val")
    text = visible(write_report(folder, dataset="coco_2017_val").read_text())
    assert "box AP, paper, Table 6 40.3 61.0 44.0 – – –" in text and "cannot be compared" not in text
    assert (folder / "report-coco_2017_val.html").is_file()


# What is wrong: (how to change the run folder, arguments of write_report, part of the error).
MISTAKES = {
    "not a folder": (lambda f: shutil.rmtree(f), {}, "does not exist; pass the OUTPUT_DIR"),
    "no run": (lambda f: (f / "config.yaml").unlink(), {}, "has no config.yaml"),
    "damaged config": (lambda f: (f / "config.yaml").write_text("a: ["), {}, "is not a plain YAML config"),
    "other dataset": (lambda f: None, {"dataset": "x"}, f"was not evaluated on x; use one of {NAME}"),
    "damaged detections": (lambda f: detections_file(f).write_text("["), {}, "cannot be read"),
    "other format": (lambda f: detections_file(f).write_text("[1]"), {}, "not in COCO's result format"),
    "other images": (
        lambda f: detections_file(f).write_text(
            '[{"image_id": 99, "category_id": 1, "score": 1, "bbox": [1, 2, 3, 4]}]'
        ),
        {},
        "image_id 99",
    ),
    "no boxes": (
        lambda f: detections_file(f).write_text('[{"image_id": 1, "category_id": 1, "score": 1, "bbox": "x"}]'),
        {},
        "has detections whose bbox is not [x, y, width, height] of finite numbers (1 of 1",
    ),
    "incomplete annotations": (
        lambda f: (f / "data" / f"{NAME}.json").write_text('{"images": [{}], "annotations": [], "categories": []}'),
        {},
        "cannot be evaluated with the annotations of the dataset (KeyError: 'id')",
    ),
    "damaged annotations": (lambda f: (f / "data" / f"{NAME}.json").write_text("{"), {}, "cannot be read as JSON"),
    "damaged list": (lambda f: (f / "data" / "datasets.json").write_text("{"), {}, "cannot be read as JSON"),
    "score": (lambda f: None, {"min_score": 1.5}, "it must be between 0 and 1"),
    "out is a folder": (lambda f: (f.parent / "x").mkdir(), {"out": "x"}, "cannot be written"),
    "out": (lambda f: None, {"out": "/proc/x/report.html"}, "cannot be written"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_reported_in_one_sentence(name, data, tmp_path, monkeypatch):
    change, arguments, sentence = MISTAKES[name]
    folder = make_run(tmp_path / "out", data, [])
    change(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GNDetError) as error:
        write_report(folder, **arguments)
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.html*")) and not list(tmp_path.rglob("*.part"))


def test_tool(data, tmp_path, monkeypatch, capsys):
    folder = make_run(tmp_path / "out", data, [])
    monkeypatch.setattr(
        sys, "argv", ["report.py", str(folder), "--out", str(tmp_path / "x.html"), "--min-score", "0.7"]
    )
    runpy.run_path(str(REPO / "tools" / "report.py"), run_name="__main__")
    assert capsys.readouterr().out.strip() == str(tmp_path / "x.html")
    assert "a score of 0.7 or more" in visible((tmp_path / "x.html").read_text())
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(REPO / "tools" / "report.py"), run_name="__main__")
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("error: ")


def test_failed_report_does_not_fail_the_training(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(run.logger, "warning", warnings.append)
    run._report(tmp_path)  # not the folder of a run
    monkeypatch.setattr("gn_det.report.write_report", lambda folder: 1 / 0)
    run._report(tmp_path)
    assert "has no config.yaml" in warnings[0]
    assert warnings[1] == "No report was written (ZeroDivisionError: division by zero)."
