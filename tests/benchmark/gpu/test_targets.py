import pytest

from gn_det.benchmark.gpu.targets import targets

STOCK, OURS, FROZEN = "stock bf16", "gn_det bf16 channels_last", "BN* gn_det bf16 channels_last"


def row(*seconds: float, **more) -> dict:
    return {"rounds": list(seconds), "seconds": sorted(seconds)[len(seconds) // 2], **more}


def operation(name: str, channels: int, ratio: float, share: float) -> dict:
    case = {"name": name, "shape": [2, channels, 200, 304], "direction": "forward + backward"}
    return case | {"ratio": {"ratio": ratio}, "bandwidth_share": {"ratio": share}}


@pytest.fixture
def stage() -> dict:
    operations = {
        "rows": [operation("res2", 256, 3.0, 0.85), operation("tiny", 1, 0.9, 0.2)],
        "summary": {"bfloat16 channels_last": {"forward + backward": {"ratio": 2.0}}},
    }
    training = {"2": row(0.1, 0.1, 0.1), "16": row(0.4, 0.4, 0.4, peak=100)}
    ours = {"2": row(0.04, 0.05, 0.04), "16": row(0.1, 0.1, 0.1, peak=70)}
    frozen = {"2": row(0.039, 0.049, 0.039), "16": row(0.09, 0.09, 0.09)}
    rows = {
        "stock fp32": {"inference": {"1": row(0.03, 0.03, 0.03)}, "training": {"2": row(0.15, 0.15, 0.15)}},
        "gn_det fp32": {"inference": {"1": row(0.02, 0.02, 0.04)}, "training": {"2": row(0.16, 0.16, 0.16)}},
        STOCK: {"training": training, "start": {"seconds": 10.0}},
        "stock bf16 channels_last": {"start": {"seconds": 9.0}},
        OURS: {"training": ours, "start": {"seconds": 45.0}, "operations": operations},
        FROZEN: {"training": frozen},
    }
    return {"candidates": rows}


def test_targets_compare_the_fastest_candidate_with_stock(stage):
    found = {(t.name, t.bound): (t.value and t.value.text, t.verdict) for t in targets(stage)}
    assert found["from the start to iteration 20", "at most stock + 30 s"] == (f"+36.0 s, {OURS}", "missed")
    assert found["inference, batch 1", ">= 3x stock fp32"] == ("1.50x (0.75 to 1.50), gn_det fp32", "missed")
    assert found["inference, batch 1", ">= 2x stock bf16"] == (None, "not measured")
    assert found["training, batch 2", ">= 2x stock bf16"] == (f"2.50x (2.00 to 2.50), {OURS}", "reached")
    assert found["training, batch 16", ">= 100 images/s"] == (f"160 images/s, {OURS}", "reached")
    assert found["training, batch 16", ">= 2x stock bf16"] == (f"4.00x (4.00 to 4.00), {OURS}", "reached")
    assert found["training, batch 16, peak memory", "<= 0.6x stock bf16"] == (f"0.70x, {OURS}", "missed")
    overhead = (f"+11.1%, batch 16, {OURS}", "missed")
    assert found["training, GN above BN* with the same heads", "<= 8 %"] == overhead
    assert found["GN + ReLU, bf16, maps over 8 MB", ">= 80 % of a copy's bandwidth"] == ("85%, res2", "reached")
    assert found["GN + ReLU, bf16, each shape", "never slower than PyTorch (>= 0.98x)"] == ("0.90x, tiny", "missed")
    slower = ("0.94x (0.94 to 0.94), training, batch 2", "missed")
    assert found["defaults (gn_det fp32)", "never slower than stock fp32 (>= 0.98x)"] == slower
    assert found["CPU", "not slower than before"] == (None, "not measured")


def test_a_start_that_stalls_misses_the_target(stage):
    stage["candidates"]["gn_det fp32"]["start"] = {"error": "did not answer within 100 s, in make_ptx (nvidia.py:3)"}
    first = targets(stage)[0]
    assert first.verdict == "missed" and first.value.text.startswith("gn_det fp32 did not answer within 100 s")


def test_rounds_that_one_candidate_lacks_are_left_out(stage):
    stage["candidates"][STOCK]["training"]["2"]["rounds"] = [0.2]
    found = {(t.name, t.bound): t.value for t in targets(stage)}
    assert found["training, batch 2", ">= 2x stock bf16"].number == pytest.approx(5.0)
