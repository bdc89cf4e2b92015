import gc
import json
import types

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, Instances

from gn_det.benchmark import operations, run
from gn_det.benchmark.made_up import made_up_images
from gn_det.benchmark.outputs import differences
from gn_det.benchmark.peak import peak_bytes
from gn_det.benchmark.sides import NORMS, WAYS, build_sides, side_name, stock_config
from gn_det.benchmark.stages import Setup, inference, parts
from gn_det.benchmark.table import NOT_MEASURED, summary
from gn_det.benchmark.timeline import PARTS, Stretches
from gn_det.benchmark.timing import Subject, interleave, ratio, seconds, stopwatch
from gn_det.benchmark.training import training
from gn_det.config.files import load_config
from gn_det.errors import GNDetError
from gn_det.modeling.norm import is_norm, norm_name

QUICK = "quickstart_R18_FPN_gn_scratch"
SMALL = ["MODEL.RPN.PRE_NMS_TOPK_TEST", "100", "MODEL.RPN.POST_NMS_TOPK_TEST", "16", "TEST.DETECTIONS_PER_IMAGE", "8"]
SMALL += ["MODEL.RPN.POST_NMS_TOPK_TRAIN", "64", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8"]
SIDES = ["stock", "gn_det fp32", "frozen BN, gn_det fp32"]


@pytest.fixture(autouse=True, scope="module")
def _little_garbage_to_seek():
    gc.freeze()
    yield
    gc.unfreeze()


def setup(*sides: str, batch: int = 1, name: str = QUICK, opts=()) -> Setup:
    cfg = load_config(name, [*SMALL, "MODEL.DEVICE", "cpu", *opts])
    return Setup(cfg, (64, 96), batch, repeats=2, seed=0, sides=sides)


def sides_of(cfg, *names: str):
    images = made_up_images(1, (64, 96), cfg.MODEL.ROI_HEADS.NUM_CLASSES, "cpu", seed=0)
    return build_sides(cfg, images, trains=False, names=names), images


# Timing


def test_subjects_take_turns_those_of_a_kind_together_and_once_more_after_a_change():
    log = []

    def subject(name: str, kind: str) -> Subject:
        return Subject(name, lambda: name, lambda: log.append(f"before {name}"), kind)

    def timed(call) -> float:
        log.append(call())
        return float(len(log))

    values = interleave([subject("A", "x"), subject("B", "y"), subject("C", "x")], 2, timed, warmup=1)
    ran = "".join(entry for entry in log if "before" not in entry)
    assert ran == "ACBB" + "AACBB" * 2
    assert log[::2] == [f"before {name}" for name in ran]
    # each round's last run of a subject, and not the one after the change, nor those of the warm-up
    assert values == {"A": [12.0, 22.0], "B": [18.0, 28.0], "C": [14.0, 24.0]}


def test_garbage_is_not_collected_while_a_subject_runs():
    seen = []
    interleave([Subject("A", lambda: seen.append(gc.isenabled()))], 1, lambda call: call(), warmup=0)
    assert seen == [False] and gc.isenabled()


def test_medians_and_the_ratio_of_each_round():
    assert seconds([3.0, 1.0, 7.0]) == {"seconds": 3.0, "spread": [1.0, 7.0]}
    assert ratio([4.0, 9.0, 2.0], [2.0, 3.0, 4.0]) == {"ratio": 2.0, "spread": [0.5, 3.0]}  # not 4 / 3


def test_what_is_quick_is_called_until_the_time_is_filled(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("gn_det.benchmark.timing.time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    calls = []

    def takes_two_seconds():
        calls.append(1)
        clock[0] += 2.0

    assert stopwatch("cpu")(takes_two_seconds) == 2.0 and len(calls) == 1
    assert stopwatch("cpu", least=10.0)(takes_two_seconds) == 2.0 and len(calls) == 1 + 1 + 5


def test_stretches_sum_up_what_each_name_took(monkeypatch):
    times = iter([0.0, 1.0, 3.0, 7.0, 15.0])
    monkeypatch.setattr("gn_det.benchmark.timeline.time", types.SimpleNamespace(perf_counter=lambda: next(times)))
    stretches = Stretches("cpu")

    def call():
        for name in ("b", "a", "b"):
            stretches.enter(name)

    assert stretches.run(call, "a") == {"a": 1.0 + 4.0, "b": 2.0 + 8.0}


# Sides


@pytest.mark.parametrize("name", [QUICK, "mask_rcnn_R50_C4_gn"])
def test_stock_has_only_detectron2s_classes_and_the_same_weights(tiny_cfg, name):
    (stock, ours, _), images = sides_of(tiny_cfg(name, *SMALL[4:6]), "stock", "gn_det fp32", "gn_det bf16")
    assert not [type(m) for m in stock.model.modules() if type(m).__module__.startswith("gn_det")]
    assert [m for m in ours.model.modules() if type(m).__module__.startswith("gn_det.ops")]
    assert not any(type(m) is ROIPooler for m in ours.model.modules())
    theirs, state = stock.model.state_dict(), ours.model.state_dict()
    assert theirs.keys() == state.keys() and all(torch.equal(theirs[key], state[key]) for key in theirs)


def test_floors_have_another_norm_wherever_the_config_has_gn():
    sides, _ = sides_of(setup().cfg)
    assert [side.name for side in sides] == [side_name(norm, way) for norm in NORMS for way in WAYS]
    by_name = {side.name: side for side in sides}
    assert by_name["gn_det fp32"].model is by_name["gn_det bf16"].model
    assert by_name["gn_det bf16"].cfg.INFERENCE.DTYPE == "bfloat16"
    for side in sides:
        kinds = {norm_name(module) for module in side.model.modules() if is_norm(module)}
        assert kinds == ({side.norm} if side.norm else set())
    stem, gn = (by_name[name].model.backbone.bottom_up.stem.conv1.weight for name in ("no norm, stock", "stock"))
    assert torch.equal(stem, gn)


def test_stock_gets_the_head_that_gn_dets_name_stands_for():
    cfg = stock_config(setup().cfg)
    head = cfg.MODEL.ROI_BOX_HEAD
    assert (head.NAME, head.NUM_CONV, head.NUM_FC) == ("FastRCNNConvFCHead", 4, 1)


@pytest.mark.parametrize(
    "name, opts, words",
    [
        ("mask_rcnn_R50_FPN_frozenbn", [], "has no GN in any of MODEL.RESNETS.NORM"),
        (QUICK, ["MODEL.GN.NUM_GROUPS", "16"], "Stock detectron2 cannot build quickstart"),
    ],
)
def test_models_that_cannot_be_compared(name, opts, words):
    with pytest.raises(GNDetError, match=words):
        stock_config(load_config(name, opts))


# Stages


def test_inference_has_equal_outputs_and_says_so():
    record = inference(setup("stock", "gn_det fp32", "no norm, stock"))
    stock, ours = record["sides"]["stock"], record["sides"]["gn_det fp32"]
    assert stock["rois"] == ours["rois"] == 16 and stock["detections"] == ours["detections"] > 2
    assert ours["difference"]["equal"] and ours["difference"]["scores"] < 1e-4
    assert list(record["ratios"]) == ["gn_det fp32"] and list(record["above"]) == ["stock"]
    assert ours["spread"][0] <= ours["seconds"] <= ours["spread"][1] and ours["peak"] > 2**20
    json.dumps(record)


def test_differences_are_of_partners_in_a_class():
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


def test_parts_give_all_sides_the_same_work():
    record = parts(setup("stock", "gn_det bf16", "no norm, gn_det fp32"))
    assert {(side["rois"], side["detections"] > 0) for side in record["sides"].values()} == {(16, True)}
    assert len({side["detections"] for side in record["sides"].values()}) == 1
    for side in record["sides"].values():
        assert tuple(side["parts"]) == PARTS and all(part["seconds"] > 0 for part in side["parts"].values())


def test_training_gives_all_sides_the_same_work():
    record = training(setup(*SIDES, batch=2))
    for side in record["sides"].values():
        assert (side["rois"], side["foreground"]) == (16, 8)
        assert list(side["steps"]) == ["forward", "backward", "optimizer"]
        assert side["seconds"] > side["steps"]["forward"]["seconds"]
    assert {way: list(norms) for way, norms in record["above"].items()} == {"fp32": ["FrozenBN"]}
    peaks = {name: side["peak"] for name, side in record["sides"].items()}
    assert peaks["frozen BN, gn_det fp32"] < peaks["gn_det fp32"] == pytest.approx(peaks["stock"], rel=0.01)
    json.dumps(record)


def test_peak_is_weights_and_what_lives_at_once():
    (side,), _ = sides_of(setup().cfg, "stock")
    weights = sum(t.numel() * 4 for t in (*side.model.parameters(), *side.model.buffers()))

    def run():
        for _ in range(3):
            torch.ones(1000).add(1)  # two at a time

    assert peak_bytes(side.model, run) == weights + 2 * 4000


def test_operations_are_on_the_shapes_of_the_config():
    whole = Setup(load_config("mask_rcnn_R50_FPN_gn"), (800, 1216), 2, 1, 0)
    assert operations.shapes(whole) == {
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
        ours, stock = (case.call(who, direction)() for who in ("gn_det", "stock"))
        pairs = [(ours, stock)] if direction == "forward" else zip(ours, stock, strict=True)
        for a, b in pairs:
            apart = (a.float() - b.float()).norm() / b.float().norm()
            assert apart < (0.02 if "bfloat16" in variant else 1e-5)
    assert torch.equal(case.call("copy", "forward + backward")(), case.x)


# Tables and files

RATIO = {"ratio": 1.5, "spread": [1.4, 1.75]}
MADE_UP = {
    "hardware": {"device": "cpu"},
    "stages": {
        "inference": {
            "ratios": {"gn_det fp32": RATIO, "gn_det bf16": {"ratio": 2.0, "spread": [2.0, 2.0]}},
            "above": {"bf16": {"FrozenBN": {"ratio": 1.06, "spread": [1.04, 1.08]}}},
            "sides": {
                "gn_det fp32": {"difference": {"boxes_relative": 2e-6, "scores": 1e-3, "unmatched": 0, "equal": False}}
            },
        },
        "training": {
            "ratios": {"gn_det fp32": RATIO},
            "above": {},
            "sides": {"stock": {"peak": 200}, "gn_det fp32": {"peak": 120}},
        },
    },
}


def summary_rows(record: dict) -> dict[str, str]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in summary(record).splitlines()[2:]]
    return dict(lines)


def test_summary_has_what_was_measured():
    rows = summary_rows(MADE_UP)
    assert rows["inference"] == "2.00x (2.00 to 2.00), gn_det bf16"
    assert rows["inference in fp32"] == "1.50x (1.40 to 1.75)"
    assert rows["its outputs"] == "NOT equal (boxes 2.0e-06, scores 1.0e-03, 0 without a partner)"
    assert rows["training step"] == "1.50x (1.40 to 1.75), gn_det fp32"
    assert rows["peak memory of training"] == "0.60x, gn_det fp32"
    assert rows["GN above frozen BN, inference"] == "+6.0% (+4.0% to +8.0%) gn_det bf16"
    unmeasured = ("GN above frozen BN, training", "COCOeval, boxes", "COCOeval, numbers")
    assert all(rows[name] == NOT_MEASURED for name in (*unmeasured, "GN + ReLU, forward + backward"))


def test_the_tool_leaves_a_record_tables_and_a_picture(run_cli, tmp_path, monkeypatch):
    monkeypatch.setattr(operations, "_LEAST", 0.0)
    row = {
        "images": 5,
        "detections": 9,
        "pycocotools": 2.0,
        "hotcoco": 0.1,
        "ratio": 20.0,
        "spread": [19.0, 21.0],
        "equal": True,
    }
    fake = types.SimpleNamespace(measure=lambda repeats: {"boxes": row, "masks": {**row, "ratio": 5.0}})
    monkeypatch.setattr(run, "measure", fake.measure)
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
    assert all(row["of_copy"]["ratio"] > 0 and row["copy_gigabytes"] > 0 for row in ops["rows"])
    rows = summary_rows(record)
    assert rows["COCOeval, boxes"] == "20.00x (19.00 to 21.00)" and rows["COCOeval, numbers"] == "equal"
    assert rows["training step"].endswith("gn_det fp32")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--size", "800"], "--size is '800'; it is HEIGHTxWIDTH"),
        (["--size", "16x16"], "--size is 16 x 16 pixels"),
        (["--stage", "inference,speed"], "'speed' is none of inference, parts, training, ops, coco"),
        (["--stage", ","], "--stage ',': names none of inference"),
        (["--sides", "stock;ours"], "'ours' is none of stock; gn_det fp32"),
        (["--batch", "0"], "--batch is 0"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--device", "tpu"], "--device is 'tpu', which is no device here: use cuda, cuda:1 or cpu"),
        (["--device", "cuda"], "PyTorch finds no GPU here"),
        (["--output", __file__], "cannot be written"),
        (["MODEL.GN.NUM_GROUPS", "16"], "Stock detectron2 cannot build"),
    ],
)
def test_mistakes_are_one_sentence(run_cli, tmp_path, monkeypatch, arguments, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = arguments if "--output" in arguments else ["--output", tmp_path, *arguments]
    code, out, err = run_cli("benchmark.py", "--config", QUICK, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and words in err
