import dataclasses
import json

import pytest

from gn_det.benchmark.gpu import stage
from gn_det.benchmark.gpu.candidates import CANDIDATES
from gn_det.benchmark.gpu.plan import Plan
from gn_det.benchmark.gpu.report import format_gpu
from gn_det.benchmark.gpu.targets import targets
from gn_det.config.files import load_config

NAMES = ["stock fp32", "gn_det fp32", "gn_det bf16 channels_last"]
PLAN = Plan((2, 16), rounds=2, images_per_round=16)
GIB = 2**30


class FakeProcess:
    """Answers each command from ``answers``; records the order of the commands in ``log``."""

    log: list[tuple] = []

    def __init__(self, name: str, reserved: int = 0):
        self.name, self.warnings, self.timeouts = name, [], {}
        profile = {"gpu_seconds": 0.01, "kernels": 30.0, "launches": 20.0, "synchronizations": 4.0}
        self.answers = {
            "start": {"built": 1.0, "first_iteration": 2.0, "seconds": 4.0, "iterations": 20, "reserved": reserved},
            "train": {"seconds": 0.02, "waiting": 0.001, "peak": 3 * GIB, "foreground": 250.0},
            "predict": {"seconds": 0.01, "peak": GIB, "detections": 90.0},
            "profile": profile | {"places": {"layers/nms.py:20": 3}},
        }

    def call(self, timeout: float, do: str, **arguments):
        self.log.append((self.name, do, arguments.get("batch")))
        self.timeouts[do] = timeout
        answer = self.answers.get(do)
        return (None, answer) if isinstance(answer, str) else (answer, None)

    def close(self) -> None:
        pass


@pytest.fixture
def run(monkeypatch):
    """Function of (plan, GiB that each process reserves): a run with fake processes on a GPU of 80 GiB."""
    monkeypatch.setattr(FakeProcess, "log", [])

    def make(plan: Plan = PLAN, reserved: float = 1.0) -> stage._Run:
        cfg = load_config("quickstart_R18_FPN_gn_scratch", ["MODEL.DEVICE", "cpu"])
        saved = []
        made = stage._Run(cfg, (64, 96), NAMES, plan, {"source": "s", "images": 1, "objects": 1}, saved.append)
        made._processes = {name: FakeProcess(name, int(reserved * GIB)) for name in NAMES}
        made._memory = 80 * GIB
        made.record["device"] = "cuda"
        return made

    return make


def commands(do: str, batch: int | None = None) -> list[str]:
    return [name for name, what, size in FakeProcess.log if what == do and size == batch]


def test_candidates_run_in_turn_where_memory_allows_and_else_one_after_the_other(run):
    made = run(reserved=3.0)  # 9 GiB at batch 2, 72 GiB and the contexts at batch 16
    made.measure()
    assert commands("train", 2) == NAMES * 2 and commands("release").count("stock fp32") == 4
    assert commands("train", 16) == [name for name in NAMES for _ in range(2)]
    row = made.record["candidates"]["gn_det fp32"]["training"]
    assert row["2"]["interleaved"] and not row["16"]["interleaved"]
    timeouts = made._processes["gn_det fp32"].timeouts
    assert (timeouts["start"], timeouts["train"]) == (45.0, 100.0)
    assert row["2"]["rounds"] == [0.02, 0.02] and row["2"]["gpu"]["kernels"] == 30.0
    json.dumps(made.record)


def test_a_candidate_that_fails_is_a_row_with_its_reason_and_the_others_go_on(run):
    made = run()
    made._processes["gn_det fp32"].answers["train"] = "OutOfMemoryError: CUDA out of memory"
    made._processes["gn_det bf16 channels_last"].answers["start"] = (
        "did not answer within 100 s, in make_ptx (nvidia.py:3)"
    )
    made._processes["stock fp32"].answers["profile"] = "RuntimeError: no CUPTI"
    made.measure()
    fp32, bf16, stock = (made.record["candidates"][name] for name in ("gn_det fp32", NAMES[2], "stock fp32"))
    assert fp32["training"]["2"] == {"error": "OutOfMemoryError: CUDA out of memory", "interleaved": True}
    assert "make_ptx" in bf16["training"]["16"]["error"] and commands("train", 2).count(NAMES[2]) == 0
    assert bf16["inference"]["1"]["seconds"] == 0.01
    assert (
        stock["training"]["2"]["seconds"] == 0.02
        and stock["training"]["2"]["error"] == "profile: RuntimeError: no CUPTI"
    )
    text = format_gpu(made.record)
    assert "- gn_det fp32 (training, batch 2; training, batch 16): OutOfMemoryError: CUDA out of memory" in text
    assert "| gn_det bf16 channels_last did not answer within 100 s, in make_ptx (nvidia.py:3) | missed" in text


def test_what_does_not_fit_into_the_time_is_not_measured(run):
    made = run(dataclasses.replace(PLAN, minutes=0.0))
    made.measure()
    assert not FakeProcess.log
    reason = "not measured, because the 0 minutes were over"
    assert made.record["candidates"]["stock fp32"]["inference"]["1"]["error"] == reason
    assert {target.verdict for target in targets(made.record)} == {"not measured"}
    assert f"- stock fp32 (start; inference, batch 1; training, batch 2; training, batch 16): {reason}" in format_gpu(
        made.record
    )


def test_a_command_that_the_limit_of_the_stage_ends_is_no_missed_target(run, monkeypatch):
    made = run()
    monkeypatch.setattr(made, "_seconds_left", lambda: 27.0)
    made._processes["gn_det fp32"].answers["start"] = "did not answer within 27 s, in convolve (conv.py:3)"
    made.measure()
    reason = "not measured, because the 8 minutes were over, in convolve (conv.py:3)"
    assert made.record["candidates"]["gn_det fp32"]["start"] == {"error": reason}
    assert targets(made.record)[0].verdict == "not measured"


def test_tables_show_what_was_measured(run):
    made = run()
    made._processes["gn_det bf16 channels_last"].answers["train"]["seconds"] = 0.01
    made._processes["gn_det fp32"].warnings = ["GN uses PyTorch's slower kernels"]
    made.measure()
    text = format_gpu(made.record)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    rate, speedup = "100 (100 to 100)", "1.00x (1.00 to 1.00)"
    assert ["stock fp32", rate, "10.0", speedup, "-", "100%", "30", "20", "4", "1.00", "90", "-"] in rows
    assert ["stock fp32", rate, "20.0", "-", "1.0", "50%", "30", "20", "4", "3.00", "250"] in rows
    assert ["stock fp32", "1.0", "2.0", "4.0", "20"] in rows
    bound = "never slower than stock fp32 (>= 0.98x)"
    assert ["defaults (gn_det fp32)", bound, f"{speedup}, inference, batch 1", "reached"] in rows
    assert "- gn_det fp32: GN uses PyTorch's slower kernels" in text
    assert "Where the host waits for the GPU (stock fp32, training, batch 2): layers/nms.py:20 (3)." in text
    made.record["device"] = "cpu"
    assert "reached" not in format_gpu(made.record)


def test_every_candidate_has_keys_of_the_config():
    cfg = load_config("quickstart_R18_FPN_gn_scratch")
    for candidate in CANDIDATES.values():
        cfg.clone().merge_from_list([part for item in candidate.options.items() for part in item])
