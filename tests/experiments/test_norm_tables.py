import re

from gn_det.evaluation.records import read_record
from gn_det.experiments.norm_tables import draw_study, study_tables
from helpers.paths import REPO


def record(norm: str, batch: int, seed: int, box_ap: float | None) -> dict:
    row = {"variant": {"norm": norm, "batch": batch, "seed": seed}, "box": None, "mask": None}
    return row | ({"diverged": 7} if box_ap is None else {"box": {"AP": box_ap}, "mask": {"AP": box_ap + 1}})


STUDY = [
    record("BN", 4, 1, 30.0),
    record("GN", 4, 1, 48.0),
    record("GN", 4, 2, 50.0),
    record("GN", 2, 1, 47.0),
    record("FrozenBN", 2, 1, None),
    record("BN", 2, 1, 20.0),
    record("BN", 2, 2, None),
]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_show_spread_and_number_of_seeds_by_norm_and_batch_size():
    box, mask = study_tables(STUDY).split("\n\n")[:2]
    assert [cells(line) for line in box.splitlines() if "---" not in line] == [
        ["box AP", "batch 2", "batch 4"],
        ["GN", "47.0 (1)", "49.0 ± 1.4 (2)"],
        ["BN", "10.0 ± 14.1 (2), 1 diverged", "30.0 (1)"],
        ["BN*", "diverged (1)", "-"],
    ]
    assert cells(mask.splitlines()[2])[1:] == ["48.0 (1)", "50.0 ± 1.4 (2)"]


def test_tables_leave_out_mask_ap_without_masks():
    assert "mask AP" not in study_tables([record("GN", 1, 1, 40.0) | {"mask": None}])


def test_picture_has_a_line_per_norm(tmp_path):
    draw_study(STUDY, tmp_path / "study.svg")
    picture = (tmp_path / "study.svg").read_text()
    assert picture.count('id="line2d') > 6 and "Box AP" in picture and "BN*" in picture


def test_page_and_readme_have_the_figures_of_the_records():
    records = [read_record(path) for path in sorted((REPO / "results" / "norm_study").glob("*.json"))]
    box, mask = study_tables(records).split("\n\n")[:2]
    gn, bn = (re.findall(r"([\d.]+) ±", line) for line in box.splitlines() if line.startswith(("| GN ", "| BN ")))
    means = f"is {gn[0]}, {gn[1]} and {gn[2]} with GN, and {bn[0]}, {bn[1]} and {bn[2]} with BN"
    assert means in " ".join((REPO / "README.md").read_text().split())
    page = (REPO / "docs" / "norm_study.md").read_text()
    assert box in page and mask in page
