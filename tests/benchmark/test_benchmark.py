import gc
import json
import types

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, Instances

from gn_det.benchmark import operations, run
from gn_det.benchmark.candidates import IMPLEMENTATIONS, NORMS, build_candidates, candidate_name, stock_config
from gn_det.benchmark.outputs import differences
from gn_det.benchmark.peak import peak_bytes
from gn_det.benchmark.phases import PARTS, PhaseTimer
from gn_det.benchmark.stages import Setup, inference, parts
from gn_det.benchmark.synthetic import synthetic_images
from gn_det.benchmark.table import NOT_MEASURED, summary
from gn_det.benchmark.timing import TimedCall, interleave, median_seconds, ratio, stopwatch
from gn_det.benchmark.training import training
from gn_det.config.files import load_config
from gn_det.errors import GNDetError
from gn_det.modeling.norm import is_norm, norm_name

QUICK = "quickstart_R18_FPN_gn_scratch"
SMALL = ["MODEL.RPN.PRE_NMS_TOPK_TEST", "100", "MODEL.RPN.POST_NMS_TOPK_TEST", "16", "TEST.DETECTIONS_PER_IMAGE", "8"]
SMALL += ["MODEL.RPN.POST_NMS_TOPK_TRAIN", "64", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8"]
CANDIDATES = ["stock", "gn_det fp32", "frozen BN, gn_det fp32"]


@pytest.fixture(autouse=True, scope="module")
def _frozen_garbage():
    """Exclude existing objects from garbage collection, which runs before each timed call."""
    gc.freeze()
    yield
    gc.unfreeze()


def setup(*candidates: str, batch: int = 1, name: str = QUICK, opts=()) -> Setup:
    cfg = load_config(name, [*SMALL, "MODEL.DEVICE", "cpu", *opts])
    return Setup(cfg, (64, 96), batch, repeats=2, seed=0, candidates=candidates)


def candidates_of(cfg, *names: str):
    images = synthetic_images(1, (64, 96), cfg.MODEL.ROI_HEADS.NUM_CLASSES, "cpu", seed=0)
    return build_candidates(cfg, images, training=False, names=names)


# Timing


def test_interleave_orders_calls_by_group_and_repeats_a_call_after_a_change_of_group():
    log = []

    def timed_call(name: str, group: str) -> TimedCall:
        return TimedCall(name, lambda: name, lambda: log.append(f"prepare {name}"), group)

    def measure(call) -> float:
        log.append(call())
        return float(len(log))

    values = interleave([timed_call("A", "x"), timed_call("B", "y"), timed_call("C", "x")], 2, measure, warmup=1)
    runs = "".join(entry for entry in log if "prepare" not in entry)
    assert runs == "ACBB" + "AACBB" * 2
    assert log[::2] == [f"prepare {name}" for name in runs]
    # Each value is from the last run of a call in a round; warm-up rounds have no values.
    assert values == {"A": [12.0, 22.0], "B": [18.0, 28.0], "C": [14.0, 24.0]}


def test_interleave_does_not_collect_garbage_while_a_call_runs():
    seen = []
    interleave([TimedCall("A", lambda: seen.append(gc.isenabled()))], 1, lambda call: call(), warmup=0)
    assert seen == [False] and gc.isenabled()


def test_median_seconds_and_ratio_have_the_spread_over_rounds():
    assert median_seconds([3.0, 1.0, 7.0]) == {"seconds": 3.0, "spread": [1.0, 7.0]}
    assert ratio([4.0, 9.0, 2.0], [2.0, 3.0, 4.0]) == {"ratio": 2.0, "spread": [0.5, 3.0]}  # medians give 4 / 3


def test_stopwatch_repeats_a_fast_call_until_the_minimum_time_is_filled(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("gn_det.benchmark.timing.time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    calls = []

    def takes_two_seconds():
        calls.append(1)
        clock[0] += 2.0

    assert stopwatch("cpu")(takes_two_seconds) == 2.0 and len(calls) == 1
    assert stopwatch("cpu", min_seconds=10.0)(takes_two_seconds) == 2.0 and len(calls) == 1 + 1 + 5


def test_phase_timer_sums_the_seconds_of_each_phase(monkeypatch):
    times = iter([0.0, 1.0, 3.0, 7.0, 15.0])
    monkeypatch.setattr("gn_det.benchmark.phases.time", types.SimpleNamespace(perf_counter=lambda: next(times)))
    timer = PhaseTimer("cpu")

    def call():
        for name in ("b", "a", "b"):
            timer.enter(name)

    assert timer.run(call, "a") == {"a": 1.0 + 4.0, "b": 2.0 + 8.0}


# Candidates


@pytest.mark.parametrize("name", [QUICK, "mask_rcnn_R50_C4_gn"])
def test_stock_has_only_detectron2_classes_and_the_same_weights(tiny_cfg, name):
    stock, fp32, _ = candidates_of(tiny_cfg(name, *SMALL[4:6]), "stock", "gn_det fp32", "gn_det bf16")
    assert not [type(m) for m in stock.model.modules() if type(m).__module__.startswith("gn_det")]
    assert [m for m in fp32.model.modules() if type(m).__module__.startswith("gn_det.ops")]
    assert not any(type(m) is ROIPooler for m in fp32.model.modules())
    stock_state, fp32_state = stock.model.state_dict(), fp32.model.state_dict()
    assert stock_state.keys() == fp32_state.keys()
    assert all(torch.equal(stock_state[key], fp32_state[key]) for key in stock_state)


def test_candidates_with_another_norm_have_it_wherever_the_config_has_gn():
    candidates = candidates_of(setup().cfg)
    by_name = {candidate.name: candidate for candidate in candidates}
    assert list(by_name) == [candidate_name(norm, i) for norm in NORMS for i in IMPLEMENTATIONS]
    assert by_name["gn_det fp32"].model is by_name["gn_det bf16"].model
    assert by_name["gn_det bf16"].cfg.INFERENCE.DTYPE == "bfloat16"
    for candidate in candidates:
        norms = {norm_name(module) for module in candidate.model.modules() if is_norm(module)}
        assert norms == ({candidate.norm} if candidate.norm else set())
    stem, gn = (by_name[name].model.backbone.bottom_up.stem.conv1.weight for name in ("no norm, stock", "stock"))
    assert torch.equal(stem, gn)


def test_stock_config_replaces_the_box_head_with_its_equivalent():
    cfg = stock_config(setup().cfg)
    head = cfg.MODEL.ROI_BOX_HEAD
    assert (head.NAME, head.NUM_CONV, head.NUM_FC) == ("FastRCNNConvFCHead", 4, 1)


@pytest.mark.parametrize(
    ("name", "opts", "words"),
    [
        ("mask_rcnn_R50_FPN_frozenbn", [], "has no GN in any of MODEL.RESNETS.NORM"),
        (QUICK, ["MODEL.GN.NUM_GROUPS", "16"], "Stock detectron2 cannot build quickstart"),
    ],
)
def test_stock_config_refuses_models_that_cannot_be_compared(name, opts, words):
    with pytest.raises(GNDetError, match=words):
        stock_config(load_config(name, opts))


# Stages


def test_inference_reports_equal_outputs():
    record = inference(setup("stock", "gn_det fp32", "no norm, stock"))
    stock, fp32 = record["candidates"]["stock"], record["candidates"]["gn_det fp32"]
    assert stock["rois"] == fp32["rois"] == 16 and stock["detections"] == fp32["detections"] > 2
    assert fp32["difference"]["equal"] and fp32["difference"]["scores"] < 1e-4
    assert list(record["ratios"]) == ["gn_det fp32"] and list(record["gn_overhead"]) == ["stock"]
    assert fp32["spread"][0] <= fp32["seconds"] <= fp32["spread"][1] and fp32["peak"] > 2**20
    json.dumps(record)


def test_differences_match_detections_within_a_class():
    def instances(boxes, scores, classes) -> list[Instances]:
        fields = {"scores": torch.tensor(scores), "pred_classes": torch.tensor(classes)}
        return [Instances((50, 50), pred_boxes=Boxes(torch.tensor(boxes)), **fields)]

    a = instances([[0.0, 0, 10, 10], [5, 5, 40, 40]], [0.8, 0.4], [0, 1])
    swapped = instances([[5.0, 5, 40, 40.002], [0, 0, 10, 10]], [0.4, 0.8], [1, 0])
    assert differences(a, swapped)["equal"] and differences(a, swapped)["boxes"] == pytest.approx(0.002, rel=1e-2)
    other_class = instances([[0.0, 0, 10, 10], [5, 5, 40, 40]], [0.8, 0.4], [0, 0])
    assert differences(a, other_class)["unmatched"] == 2 and not differences(a, other_class)["equal"]
    other_score = instances([[0.0, 0, 10, 10], [5, 5, 40, 40]], [0.8, 0.41], [0, 1])
    found = differences(a, other_score)
    assert found["scores"] == pytest.approx(0.01 / 0.8, rel=1e-3) and not found["equal"]
    nothing = [a[0][:0]]
    assert differences(a, nothing)["unmatched"] == 2 and differences(nothing, nothing)["equal"]


def test_parts_gives_all_candidates_the_same_work():
    record = parts(setup("stock", "gn_det bf16", "no norm, gn_det fp32"))
    rows = record["candidates"].values()
    assert {(row["rois"], row["detections"] > 0) for row in rows} == {(16, True)}
    assert len({row["detections"] for row in rows}) == 1
    for row in rows:
        assert tuple(row["parts"]) == PARTS and all(part["seconds"] > 0 for part in row["parts"].values())


def test_training_gives_all_candidates_the_same_work():
    record = training(setup(*CANDIDATES, batch=2))
    for row in record["candidates"].values():
        assert (row["rois"], row["foreground"]) == (16, 8)
        assert list(row["steps"]) == ["forward", "backward", "optimizer"]
        assert row["seconds"] > row["steps"]["forward"]["seconds"]
    assert {name: list(norms) for name, norms in record["gn_overhead"].items()} == {"fp32": ["FrozenBN"]}
    peaks = {name: row["peak"] for name, row in record["candidates"].items()}
    assert peaks["frozen BN, gn_det fp32"] < peaks["gn_det fp32"] == pytest.approx(peaks["stock"], rel=0.01)
    json.dumps(record)


def test_peak_bytes_is_weights_and_tensors_alive_at_once():
    (candidate,) = candidates_of(setup().cfg, "stock")
    weights = sum(t.numel() * 4 for t in (*candidate.model.parameters(), *candidate.model.buffers()))

    def run():
        for _ in range(3):
            torch.ones(1000).add(1)  # two tensors are alive at a time

    assert peak_bytes(candidate.model, run) == weights + 2 * 4000


def test_shapes_follow_the_config():
    full_size = Setup(load_config("mask_rcnn_R50_FPN_gn"), (800, 1216), 2, 1, 0)
    assert operations.shapes(full_size) == {
        "stem": (2, 64, 400, 608),
        "res2": (2, 256, 200, 304),
        "res3": (2, 512, 100, 152),
        "res4": (2, 1024, 50, 76),
        "res5": (2, 2048, 25, 38),
        "FPN p2": (2, 256, 200, 304),
        "FPN p3": (2, 256, 100, 152),
        "FPN p4": (2, 256, 50, 76),
        "FPN p5": (2, 256, 25, 38),
        "FPN p6": (2, 256, 13, 19),
        "box RoIs": (2000, 256, 7, 7),
        "mask RoIs": (200, 256, 14, 14),
    }


@pytest.mark.parametrize("variant", operations.VARIANTS)
def test_operations_compute_the_same(variant):
    case = operations._Case.make((2, 64, 5, 7), variant, setup())
    for direction in operations.DIRECTIONS:
        actual, expected = (case.call(implementation, direction)() for implementation in ("gn_det", "stock"))
        pairs = [(actual, expected)] if direction == "forward" else zip(actual, expected, strict=True)
        for a, b in pairs:
            error = (a.float() - b.float()).norm() / b.float().norm()
            assert error < (0.02 if "bfloat16" in variant else 1e-5)
    assert torch.equal(case.call("copy", "forward + backward")(), case.x)


# Tables and files

RATIO = {"ratio": 1.5, "spread": [1.4, 1.75]}
RECORD = {
    "hardware": {"device": "cpu"},
    "stages": {
        "inference": {
            "ratios": {"gn_det fp32": RATIO, "gn_det bf16": {"ratio": 2.0, "spread": [2.0, 2.0]}},
            "gn_overhead": {"bf16": {"FrozenBN": {"ratio": 1.06, "spread": [1.04, 1.08]}}},
            "candidates": {
                "gn_det fp32": {"difference": {"boxes_relative": 2e-6, "scores": 1e-3, "unmatched": 0, "equal": False}}
            },
        },
        "training": {
            "ratios": {"gn_det fp32": RATIO},
            "gn_overhead": {},
            "candidates": {"stock": {"peak": 200}, "gn_det fp32": {"peak": 120}},
        },
    },
}


def summary_rows(record: dict) -> dict[str, str]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in summary(record).splitlines()[2:]]
    return dict(lines)


def test_summary_shows_measured_and_unmeasured_values():
    rows = summary_rows(RECORD)
    assert rows["inference"] == "2.00x (2.00 to 2.00), gn_det bf16"
    assert rows["inference in fp32"] == "1.50x (1.40 to 1.75)"
    assert rows["outputs in fp32"] == "NOT equal (boxes 2.0e-06, scores 1.0e-03, 0 unmatched)"
    assert rows["training step"] == "1.50x (1.40 to 1.75), gn_det fp32"
    assert rows["peak memory of training"] == "0.60x, gn_det fp32"
    assert rows["GN overhead over frozen BN, inference"] == "+6.0% (+4.0% to +8.0%) gn_det bf16"
    unmeasured = ("GN overhead over frozen BN, training", "COCOeval, boxes", "COCOeval, results")
    assert all(rows[name] == NOT_MEASURED for name in (*unmeasured, "GN + ReLU, forward + backward"))


def test_tool_writes_a_record_tables_and_a_picture(run_cli, tmp_path, monkeypatch):
    monkeypatch.setattr(operations, "_MIN_SECONDS", 0.0)
    row = {
        "images": 5,
        "detections": 9,
        "pycocotools": 2.0,
        "hotcoco": 0.1,
        "ratio": 20.0,
        "spread": [19.0, 21.0],
        "equal": True,
    }
    monkeypatch.setattr(run, "measure", lambda repeats: {"boxes": row, "masks": {**row, "ratio": 5.0}})
    arguments = ["--config", QUICK, "--size", "64x96", "--repeats", 1, "--batch", 1, "--device", "cpu"]
    arguments += ["--sides", "stock; gn_det fp32", "--output", tmp_path / "new"]
    code, out, err = run_cli("benchmark.py", *arguments, *SMALL)
    assert code == 0, err
    record = json.loads((tmp_path / "new" / "benchmark.json").read_text())
    assert list(record["stages"]) == list(run.STAGES)
    assert {"config", "changed", "command", "seed", "versions", "hardware", "commit", "threads", "date"} < record.keys()
    assert (tmp_path / "new" / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "new" / "benchmark.md").read_text().strip() in out
    assert "ops 72 of 72" in err
    ops = record["stages"]["ops"]
    assert len(ops["rows"]) == 12 * 3 * 2 and set(ops["summary"]) == set(operations.VARIANTS)
    assert all(row["bandwidth_share"]["ratio"] > 0 and row["copy_gigabytes"] > 0 for row in ops["rows"])
    rows = summary_rows(record)
    assert rows["COCOeval, boxes"] == "20.00x (19.00 to 21.00)" and rows["COCOeval, results"] == "equal"
    assert rows["training step"].endswith("gn_det fp32")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "800"], "--size is '800'; it must be HEIGHTxWIDTH"),
        (["--size", "16x16"], "--size is 16 x 16 pixels"),
        (["--stage", "inference,speed"], "'speed' is not one of inference, parts, training, ops, host, coco"),
        (["--stage", ","], "--stage is ','; it must name at least one of inference"),
        (["--sides", "stock;ours"], "'ours' is not one of stock; gn_det fp32"),
        (["--batch", "0"], "--batch-size is 0"),
        (
            ["--batch", "2,4"],
            "--batch-size is 2,4; it is the number of images per batch and must be 1 or more, and only",
        ),
        (["--stage", "gpu,ops"], "the stage gpu runs alone"),
        (["--stage", "gpu", "--sides", "stock"], "'stock' is not one of stock fp32; gn_det fp32"),
        (["--stage", "gpu", "--train-json", "x.json"], "--train-json and --train-images go together, with --stage gpu"),
        (["--train-json", "x.json", "--train-images", "x"], "go together, with --stage gpu"),
        (["--stage", "gpu", "--minutes", "0"], "--minutes is 0; it must be more than 0"),
        (["--stage", "gpu", "--timeout", "-1"], "--timeout is -1; it must be more than 0"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--device", "tpu"], "--device is 'tpu'; it must be cpu, cuda, or cuda:N for GPU number N"),
        (["--device", "cuda"], "PyTorch finds no GPU here"),
        (["--output", __file__], "cannot be written"),
        (["MODEL.GN.NUM_GROUPS", "16"], "Stock detectron2 cannot build"),
    ],
)
def test_invalid_arguments_are_reported_in_one_sentence(run_cli, tmp_path, monkeypatch, arguments, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = arguments if "--output" in arguments else ["--output", tmp_path, *arguments]
    code, out, err = run_cli("benchmark.py", "--config", QUICK, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and words in err
