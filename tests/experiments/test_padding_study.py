"""The study of how the padding of a batch changes AP."""

import json

import pytest
import torch

from gn_det import GNDetError
from gn_det.data import shapes
from gn_det.data.coco import register_coco_json
from gn_det.evaluation.comparison import mean_and_spread, metric_values
from gn_det.evaluation.records import read_record
from gn_det.evaluation.run_folder import remember_datasets
from gn_det.experiments import padding_study as study
from helpers.paths import REPO


@pytest.fixture
def run(output_dir, tmp_path):
    """The folder of a run whose test dataset has images of different sizes."""
    files = shapes.generate(tmp_path / "mixed", num_train=1, num_val=4, seed=1, size=64, max_size=128)
    register_coco_json("mixed_val", *map(str, files["val"]), tmp_path / "clean.json")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("model_final.pth", "config.yaml"):
        (folder / name).symlink_to(output_dir / name)
    config = (output_dir / "config.yaml").read_text().replace("- shapes_val", "- mixed_val")
    (folder / "config.yaml").unlink()
    (folder / "config.yaml").write_text(config)
    remember_datasets(folder, ("mixed_val",))
    return folder


def test_ap_with_the_padding_ignored_is_the_same_at_each_batch_size(run, run_cli, tmp_path, monkeypatch):
    scores = []
    monkeypatch.setattr(study, "_ap", lambda results: {"box": scores[-1], "mask": None})
    inference = study.inference_on_dataset

    def recorded(model, loader, evaluator):
        outputs = {}
        for batch in loader:
            with torch.no_grad():
                for sample, output in zip(batch, model(batch), strict=True):
                    outputs[sample["image_id"]] = output["instances"].scores
        scores.append(sum(value.double().sum().item() for value in outputs.values()))
        return inference(model, loader, evaluator)

    monkeypatch.setattr(study, "inference_on_dataset", recorded)
    code, out, err = run_cli(
        "padding_study.py", run, "--batch-size", "1,2,4", "--out", tmp_path / "out", "--device", "cpu"
    )
    assert code == 0, err
    rows = json.loads((tmp_path / "out" / "padding.json").read_text())["rows"]
    ignored, stock = ([row["box"] for row in rows if row["ignore_padding"] is ignore] for ignore in (True, False))
    assert ignored == pytest.approx([ignored[0]] * 3, rel=1e-4)
    assert stock[0] == pytest.approx(ignored[0], rel=1e-4)
    assert stock[1:] != pytest.approx([stock[0]] * 2, rel=1e-3)
    assert (tmp_path / "out" / "padding.md").read_text().strip() in out
    assert (tmp_path / "out" / "padding.png").read_bytes().startswith(b"\x89PNG")
    assert not (run / "inference").exists()


@pytest.mark.parametrize(
    ("batches", "words"), [([0, 1], "--batch-size is 0; it must be 1 or more images"), ([1], "has no config.yaml")]
)
def test_mistake_is_one_sentence(tmp_path, batches, words):
    with pytest.raises(GNDetError, match=words):
        study.measure(tmp_path, batches, "cpu")


def test_table_has_a_row_per_kind_and_treatment():
    rows = [
        {"ignore_padding": ignore, "batch": n, "box": 10.0 + n, "mask": 5.0} for ignore in (True, False) for n in (1, 2)
    ]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in study.table(rows).splitlines()]
    assert lines[0] == ["", "", "batch 1", "batch 2"]
    assert lines[2:4] == [
        ["box AP", "padding ignored", "11.00", "12.00"],
        ["box AP", "as stock detectron2", "11.00", "12.00"],
    ]
    assert [line[:2] for line in lines[4:]] == [["mask AP", "padding ignored"], ["mask AP", "as stock detectron2"]]


def test_page_has_the_figures_of_the_records():
    page = (REPO / "docs" / "padding.md").read_text()
    folder = REPO / "results" / "padding_study"
    rows = json.loads((folder / "test_batches-gn-stock.json").read_text())["rows"]
    for line in study.table(rows).splitlines()[2:]:
        assert f"| {' | '.join(cell.strip() for cell in line.split('|')[1:-1])} |" in page
    for name, label in (("ignored", "padding ignored"), ("stock", "as stock detectron2")):
        cells = []
        for batch in (2, 4):
            records = [read_record(folder / f"GN-batch{batch}-{name}-seed{seed}.json") for seed in (1, 2, 3)]
            assert {record["ignore_padding"] for record in records} == {name == "ignored"}
            cells += [mean_and_spread(metric_values(records, kind)) for kind in ("box", "mask")]
        assert f"| {label} | {' | '.join(cells)} |" in page
