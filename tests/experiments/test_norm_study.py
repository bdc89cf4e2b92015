import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from gn_det import GNDetError
from gn_det.config.checks import check_config
from gn_det.config.files import load_config
from gn_det.data import shapes
from gn_det.experiments.norm_study import Study, Variant, overrides, plan
from gn_det.launch.arguments import argument_parser
from gn_det.modeling.norm import NORM_KEYS, get_key
from gn_det.training.guards.signals import Stopped

QUICK = "quickstart_R18_FPN_gn_scratch"


def arguments(tmp_path, *more: str):
    return argument_parser("").parse_args(["--config", QUICK, *more, "OUTPUT_DIR", str(tmp_path)])


def test_plan_orders_all_variants_by_seed():
    variants = plan(["GN", "BN*", "GN"], [4, 1], 2)
    assert [(v.norm, v.batch, v.seed) for v in variants[:4]] == [
        ("GN", 4, 1),
        ("FrozenBN", 4, 1),
        ("GN", 1, 1),
        ("FrozenBN", 1, 1),
    ]
    assert [v.seed for v in variants] == [1] * 4 + [2] * 4


@pytest.mark.parametrize(
    ("norms", "batches", "seeds", "sentence"),
    [
        (["SynchBN"], [1], 1, "'SynchBN' is not a norm.*did you mean 'SyncBN'"),
        ([""], [1], 1, "--norms: '' is not a norm"),
        (["GN"], [0], 1, "must be 1 or more"),
        (["GN"], [2], 0, "must be 1 or more"),
    ],
)
def test_plan_refuses_unknown_norms_and_numbers_below_one(norms, batches, seeds, sentence):
    with pytest.raises(GNDetError, match=sentence):
        plan(norms, batches, seeds)


def test_overrides_scale_the_schedule_by_the_linear_rule():
    base = load_config(QUICK, ["SOLVER.IMS_PER_BATCH", "8", "SOLVER.BASE_LR", "0.02", "SOLVER.MAX_ITER", "100"])
    base.merge_from_list(["SOLVER.STEPS", "(60, 80)", "SOLVER.WARMUP_ITERS", "10", "TEST.EVAL_PERIOD", "20"])
    cfg = load_config(QUICK, overrides(base, Variant("GN", 2, 3), {}))
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER) == (2, 400) and round(solver.BASE_LR, 6) == 0.005
    assert (solver.STEPS, solver.WARMUP_ITERS, cfg.TEST.EVAL_PERIOD, cfg.SEED) == ((240, 320), 40, 80, 3)
    assert solver.REFERENCE_WORLD_SIZE == 0  # otherwise the trainer would scale the schedule again


@pytest.mark.parametrize("norm", ["GN", "BN", "LN", "IN", "FrozenBN"])
def test_overrides_replace_the_norm_where_the_config_has_one(norm):
    pairs = overrides(load_config(QUICK, ["MODEL.ROI_MASK_HEAD.NORM", ""]), Variant(norm, 4, 1), {})
    cfg = load_config(QUICK, ["MODEL.ROI_MASK_HEAD.NORM", "", *pairs])
    fpn_and_box_norm = "" if norm == "FrozenBN" else norm
    assert [get_key(cfg, key) for key in NORM_KEYS] == [norm, fpn_and_box_norm, fpn_and_box_norm, ""]
    check_config(cfg)


def test_weights_are_used_for_one_norm_only(tmp_path):
    args = arguments(tmp_path / "new", "MODEL.WEIGHTS", "R-50-GN.pkl")
    variants = plan(["GN", "BN"], [4], 1)
    with pytest.raises(GNDetError, match="trained with GN; pass weights for the other norms too .--weights BN=FILE"):
        Study(args, variants, {})
    assert not (tmp_path / "new").exists()
    pairs = overrides(load_config(QUICK), Variant("BN", 4, 1), {"BN": "R-50.pth"})
    assert pairs[pairs.index("MODEL.WEIGHTS") + 1] == "R-50.pth"


def test_study_names_an_invalid_variant_before_anything_runs(tmp_path):
    args = arguments(tmp_path, "MODEL.GN.CHANNELS_PER_GROUP", "16")
    with pytest.raises(GNDetError, match="GN, batch 4, seed 1: .*exactly one of them"):
        Study(args, plan(["BN", "GN"], [4], 1), {})


def test_study_refuses_the_folder_of_another_study(tmp_path):
    Study(arguments(tmp_path), plan(["GN"], [4], 1), {})
    Study(arguments(tmp_path), plan(["GN", "LN"], [2, 4], 2), {})  # adds variants to the same study
    with pytest.raises(GNDetError, match="another config or other data"):
        Study(arguments(tmp_path, "SOLVER.MAX_ITER", "7"), plan(["GN"], [4], 1), {})


@pytest.fixture(scope="module")
def own_data(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("data") / "shapes"
    shapes.generate(root, num_train=2, num_val=1, seed=1, size=64)
    flags = [("train-json", "train.json"), ("train-images", "train"), ("val-json", "val.json"), ("val-images", "val")]
    return [str(word) for flag, path in flags for word in (f"--{flag}", root / path)]


def test_study_refuses_other_data_of_the_same_name(tmp_path, own_data):
    study = Study(arguments(tmp_path / "study", *own_data), plan(["GN"], [1], 1), {})
    identity = json.loads((tmp_path / "study" / "study.json").read_text())
    old = {key: identity[key] for key in ("config", "recipe")}  # as an older version wrote it
    (tmp_path / "study" / "study.json").write_text(json.dumps(old))
    Study(arguments(tmp_path / "study", *own_data), plan(["GN"], [1], 1), {})
    assert json.loads((tmp_path / "study" / "study.json").read_text()) == identity
    other = tmp_path / "shapes" / "train.json"
    other.parent.mkdir()
    data = json.loads(Path(own_data[1]).read_text())
    data["annotations"].pop()
    other.write_text(json.dumps(data))
    with pytest.raises(GNDetError, match=r"another config or other data \(own_shapes_train\)"):
        Study(arguments(tmp_path / "study", "--train-json", str(other), *own_data[2:]), plan(["GN"], [1], 1), {})
    (study.folder / "records").mkdir()
    for number in range(2):
        data = {"own_shapes_train": {"digest": f"content:{number}"}}
        record = {"dataset": "own_shapes_val", "box": {"AP": 1.0}, "mask": None, "train_data": data}
        (study.folder / "records" / f"{number}.json").write_text(json.dumps(record))
    with pytest.raises(GNDetError, match="used 2 different sets of training data"):
        study.report()


@pytest.mark.slow
def test_study_trains_missing_variants_and_records_divergence(tmp_path, own_data):
    short = "SOLVER.MAX_ITER 2 SOLVER.STEPS () DATALOADER.NUM_WORKERS 0 MODEL.RPN.POST_NMS_TOPK_TEST 5".split()
    args = arguments(tmp_path, *own_data, *short, "SOLVER.IMS_PER_BATCH", "1", "SOLVER.BASE_LR", "1e30")
    lines: list[str] = []
    study = Study(args, plan(["LN"], [1], 1), {})
    assert study.run(log=lines.append) == []
    record = json.loads(study.result_file(study.variants[0]).read_text())
    assert "diverged" in record and record["box"] is None
    assert record["variant"] == {"norm": "LN", "batch": 1, "seed": 1}
    assert "[1/1] LN, batch 1, seed 1: diverged at iteration 1 (" in lines[0]

    assert study.run(log=lines.append) == [] and lines[1:] == ["1 of 1 trainings are already done."]
    table, picture = study.report()
    assert "diverged (1)" in table.read_text() and picture.stat().st_size > 5000


def _exit(code: int) -> None:
    raise SystemExit(code)


def test_study_reports_a_failed_training_and_continues_with_the_others(tmp_path, monkeypatch):
    study = Study(arguments(tmp_path), plan(["GN", "BN"], [2, 4], 1), {})
    with pytest.raises(GNDetError, match="--jobs is 0"):
        study.run(jobs=0)
    outputs = {"GN-batch2-seed1": "error: The disk is full.\n", "BN-batch2-seed1": "Killed\n"}

    def start(variant, slot, jobs):
        folder = tmp_path / variant.name
        (folder / "records").mkdir(parents=True)
        (folder / "output.txt").write_text(outputs.get(variant.name, ""))
        box = {"AP": 40.0}
        for iteration in (100, 200):
            row = {"box": box, "mask": None, "iteration": iteration}
            (folder / "records" / f"x-{iteration:07d}.json").write_text(json.dumps(row))
        process = multiprocessing.get_context("fork").Process(target=_exit, args=(variant.batch % 4,))
        process.start()
        return process

    monkeypatch.setattr(study, "_start", start)
    lines: list[str] = []
    failures = study.run(jobs=2, log=lines.append)
    assert sorted(failures) == [
        f"BN, batch 2, seed 1: the process ended with exit code 2; see {tmp_path / 'BN-batch2-seed1' / 'output.txt'}",
        "GN, batch 2, seed 1: The disk is full.",
    ]
    assert len(lines) == 4 and sum("box AP 40.0" in line for line in lines) == 2
    kept = [json.loads(path.read_text()) for path in (tmp_path / "records").iterdir()]
    assert [row["iteration"] for row in kept] == [200, 200]


def test_a_training_that_only_has_best_weights_is_continued(tmp_path):
    study = Study(arguments(tmp_path), plan(["GN"], [2], 1), {})
    (variant,) = study.variants
    assert not study._arguments(variant).resume
    (tmp_path / variant.name / "model_best.pth").touch()
    assert study._arguments(variant).resume


def test_a_signal_ends_the_study_and_its_trainings(tmp_path, monkeypatch):
    study = Study(arguments(tmp_path), plan(["GN", "BN"], [2], 1), {})
    started = []

    def start(variant, slot, jobs):
        started.append(multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)))
        started[-1].start()
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return started[-1]

    def outside(number, frame):
        raise AssertionError("the signal did not reach the study")

    old = signal.signal(signal.SIGTERM, outside)
    monkeypatch.setattr(study, "_start", start)
    try:
        with pytest.raises(Stopped) as error:
            study.run()
        assert error.value.code == 143 and signal.getsignal(signal.SIGTERM) is outside
        assert [process.exitcode is None for process in started] == [False]
    finally:
        signal.signal(signal.SIGTERM, old)
        for process in started:
            process.kill()
