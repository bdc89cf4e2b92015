import json

import pytest

from gn_det.data.shapes import generate

NAMES = ["stock fp32", "gn_det bf16 channels_last"]


@pytest.mark.slow
def test_the_stage_gpu_runs_in_a_reduced_form_on_a_cpu(run_cli, tmp_path):
    json_file, images = generate(tmp_path / "shapes", num_train=4, num_val=1, size=64, max_size=96)["train"]
    arguments = ["--config", "quickstart_R18_FPN_gn_scratch", "--stage", "gpu", "--device", "cpu", "--size", "64x96"]
    arguments += ["--sides", ";".join(NAMES), "--batch-size", "2,1", "--repeats", 1, "--output", tmp_path / "new"]
    arguments += ["--train-json", json_file, "--train-images", images, "INPUT.MIN_SIZE_TRAIN", "(64,)"]
    code, out, err = run_cli("benchmark.py", *arguments, "INPUT.MIN_SIZE_TEST", 64, "DATALOADER.NUM_WORKERS", 0)
    assert code == 0, err
    stage = json.loads((tmp_path / "new" / "benchmark.json").read_text())["stages"]["gpu"]
    assert stage["data"]["images"] == 4 and list(stage["candidates"]) == NAMES
    for row in stage["candidates"].values():
        assert set(row["training"]) == {"2", "1"} and set(row["inference"]) == {"1"} and row["warnings"] == []
        assert all("error" not in part for part in (row["start"], *row["training"].values(), row["inference"]["1"]))
    bf16 = stage["candidates"][NAMES[1]]
    assert len(bf16["operations"]["rows"]) == 24 and bf16["inference"]["1"]["difference"]["boxes"] < 100
    assert (tmp_path / "new" / "benchmark.md").read_text().strip() in out and "Targets, for one H100" in out
    assert f"training, batch 2, in turn: {'; '.join(NAMES)}" in err
    logs = {path.name for path in (tmp_path / "new" / "logs").iterdir()}
    assert logs == {"stock_fp32.log", "gn_det_bf16_channels_last.log"}
