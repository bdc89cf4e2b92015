"""MODEL_ZOO.md: it is up to date, and shows the AP of result records. The tool that writes it."""

import json
import re
from pathlib import Path

import pytest

from gn_det import model_zoo
from gn_det.evaluation.records import records_in
from gn_det.zoo.page import zoo_page
from helpers.paths import REPO

NAME = "mmdet_mask_rcnn_R50_FPN_gn_2x"


def test_the_page_is_up_to_date():
    assert (REPO / "MODEL_ZOO.md").read_text() == zoo_page(records_in(REPO / "results")), "run 'make pages'"


def test_the_page_lists_each_entry_with_its_config_and_download():
    page = zoo_page(records_in(REPO / "results"))
    for name in model_zoo.names():
        entry = model_zoo.get_entry(name)
        row = rf"^\| \[`{name}`\]\((\S+)\) (.*)\[(pkl|pth)\]\[{name}\] +\|$"
        ((config, cells, _),) = re.findall(row, page, re.MULTILINE)
        assert (REPO / config).stem == entry.config and (REPO / config).is_file()
        aps = [entry.published.get(kind) or entry.published.get("top1") for kind in ("box", "mask")]
        assert all(f"{ap:.1f}" in cells for ap in aps if ap is not None)
        assert f"\n[{name}]: {entry.urls[0]}\n" in page


def record(**changes) -> dict:
    """Return the result record of an evaluation of NAME, with some keys changed."""
    aps = {"box": {"AP": 40.16}, "mask": {"AP": 36.04}}
    known = {
        "config": NAME,
        "dataset": "coco_2017_val",
        "weights": f"gn_det://{NAME}",
        "iteration": None,
        "date": "2026-01-02",
    }
    return known | aps | {"changed": {"MODEL.WEIGHTS": "x"}} | changes


def measured(folder: Path, *records: dict) -> str:
    """Write records to a folder and return the measured AP of NAME on the page."""
    for number, content in enumerate(records):
        (folder / "sub").mkdir(exist_ok=True)
        (folder / "sub" / f"{number}.json").write_text(json.dumps(content))
    row = next(line for line in zoo_page(records_in(folder)).splitlines() if f"[`{NAME}`]" in line)
    return row.split("|")[5].strip()


def test_an_evaluation_of_the_weights_is_shown(tmp_path):
    page = lambda: zoo_page(records_in(tmp_path))  # noqa: E731
    assert measured(tmp_path) == "not measured"
    assert "**None of these weights has been evaluated with gn_det.**" in page()
    assert measured(tmp_path, record()) == "40.2, 36.0"
    assert "**1 of these weights has been evaluated with gn_det.**" in page()
    newer = record(date="2026-03-04", box={"AP": 39.0}, weights=model_zoo.get_entry(NAME).urls[0])
    assert measured(tmp_path, newer, record()) == "39.0, 36.0"


OTHER_EVALUATIONS = [
    {"dataset": "coco_2017_val_100"},
    {"config": "mmdet_mask_rcnn_R50_FPN_gn_3x"},
    {"weights": "gn_det://mmdet_mask_rcnn_R50_FPN_gn_3x"},
    {"weights": ""},
    {"iteration": 90000},
    {"changed": {"MODEL.WEIGHTS": "x", "INPUT.MIN_SIZE_TEST": 400}},
]


@pytest.mark.parametrize("changes", OTHER_EVALUATIONS)
def test_other_evaluations_are_not_shown(tmp_path, changes):
    assert measured(tmp_path, record(**changes)) == "not measured"


# ---- tools/model_zoo.py


def test_list_prints_all_names(run_cli):
    code, out, _ = run_cli("model_zoo.py", "list")
    assert code == 0 and all(f"| {name} " in out for name in model_zoo.names())


def test_fetch_prints_the_path_of_the_file(run_cli, downloads):
    file = downloads.put("R50_GN", b"x")
    assert run_cli("model_zoo.py", "fetch", "R50_GN")[:2] == (0, f"{file}\n")
    code, _, error = run_cli("model_zoo.py", "fetch", "R50_GN", "R50_GM")
    assert code == 2 and "(did you mean 'R50_GN'?)" in error and len(downloads.asked) == 1


def test_table_writes_the_page(run_cli, tmp_path):
    assert run_cli("model_zoo.py", "table", "--results", REPO / "results", "--out", tmp_path / "zoo.md")[0] == 0
    assert (tmp_path / "zoo.md").read_text() == (REPO / "MODEL_ZOO.md").read_text()
    code, _, error = run_cli("model_zoo.py", "table", "--out", tmp_path / "zoo.md" / "zoo.md")
    assert code == 2 and "cannot be written: Not a directory." in error
