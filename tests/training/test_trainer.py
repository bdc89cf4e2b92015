"""The trainer with its switches, on a model of a few numbers: what is averaged, kept, stopped, and what a resume knows."""

import contextlib
import itertools
import logging
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import hooks
from detectron2.utils import comm
from torch import nn

from gn_det import GNDetError
from gn_det.config.files import load_config
from gn_det.data import shapes
from gn_det.evaluation.records import write_record
from gn_det.training.hooks import BestCheckpoint, EarlyStop
from gn_det.training.trainer import Trainer
from helpers.terminal import Terminal
from helpers.tools import own_data, run_tool

ROWS = [{"annotations": [{"category_id": 0}]}, {"annotations": []}]
X = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]], dtype=torch.float64)


class Model(nn.Module):
    """A frozen layer, batch norm with its buffers, a trained layer; in float64."""

    def __init__(self):
        super().__init__()
        self.frozen, self.norm, self.last = nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)
        self.frozen.requires_grad_(False)
        self.double()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss_all": (self.last(self.norm(self.frozen(x))) - 1).square().mean()}


class Tiny(Trainer):
    """Each evaluation takes the next of the values, and leaves a record as gn_det's does."""

    values: dict[int, float] = {}  # by the number of iterations trained
    evaluated: list[tuple[int, dict]] = []
    raw: list[dict] = []

    @classmethod
    def build_model(cls, cfg):
        torch.manual_seed(0)
        return Model()

    @classmethod
    def build_train_loader(cls, cfg):
        return itertools.repeat(X)

    def build_writers(self):
        return []

    def after_step(self):
        self.raw.append({name: value.clone() for name, value in self._bare_model.state_dict().items()})
        super().after_step()

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        from gn_det.training.trainer import _iteration

        iteration = _iteration(cfg)
        value = cls.values.get(iteration, 0.0)
        cls.evaluated.append((iteration, {k: v.clone() for k, v in model.state_dict().items()}))
        if value == "fails":
            raise RuntimeError("evaluation fails")
        record = {"config": "x", "dataset": "tiny", "iteration": iteration, "box": {"AP": value}, "mask": None}
        write_record(cfg.OUTPUT_DIR, record)
        return {"bbox": {"AP": value}}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """(overrides, values by iteration, resume) -> a trainer in the same OUTPUT_DIR, loaded and ready."""
    DatasetCatalog.register("tiny", lambda: ROWS)
    MetadataCatalog.get("tiny").set(thing_classes=["thing"])

    def build(*opts, values=(), resume=False, folder="out", kind=Tiny) -> Tiny:
        monkeypatch.setattr(Tiny, "values", dict(values))
        monkeypatch.setattr(Tiny, "evaluated", [])
        monkeypatch.setattr(Tiny, "raw", [])
        (tmp_path / folder).mkdir(exist_ok=True)
        always = ["OUTPUT_DIR", str(tmp_path / folder), "MODEL.DEVICE", "cpu", "SOLVER.BASE_LR", 0.1]
        always += ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "('tiny',)", "SOLVER.STEPS", "(4,)"]
        always += ["SOLVER.WARMUP_ITERS", 2, "SOLVER.MAX_ITER", 6, "TEST.EVAL_PERIOD", 2]
        trainer = kind(load_config("quickstart_R18_FPN_gn_scratch", [str(word) for word in [*always, *opts]]))
        trainer.resume_or_load(resume=resume)
        return trainer

    yield build
    DatasetCatalog.remove("tiny")
    MetadataCatalog.remove("tiny")


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


EMA = ("TRAIN.EMA.ENABLED", True)


def test_checkpoints_hold_the_average_and_beside_it_what_is_trained(make, tmp_path):
    make(*EMA, "TRAIN.EMA.DECAY", 0.5).train()
    checkpoint = load(tmp_path / "out/model_final.pth")
    weights = [state["last.weight"] for state in Tiny.raw]
    decays = [0.0, *(min(0.5, (1 + t) / (10 + t)) for t in range(1, 6))]  # W'_0 = W_0
    shares = [(1 - d) * torch.tensor(decays[t + 1 :]).prod().item() for t, d in enumerate(decays)]
    assert sum(shares) == pytest.approx(1)
    average = sum(share * weight for share, weight in zip(shares, weights, strict=True))
    assert torch.allclose(checkpoint["model"]["last.weight"], average, rtol=1e-6, atol=0)
    assert not torch.allclose(average, weights[-1], rtol=1e-3)
    assert same(checkpoint["raw_model"], Tiny.raw[-1])
    assert checkpoint["model"].keys() == Model().state_dict().keys()


def test_evaluations_see_the_average_and_do_not_touch_what_is_trained(make, tmp_path):
    make().train()
    plain = Tiny.raw
    make(*EMA, folder="ema").train()
    assert [iteration for iteration, _ in Tiny.evaluated] == [2, 4, 6]
    assert all(same(a, b) for a, b in zip(plain, Tiny.raw, strict=True))
    assert same(Tiny.evaluated[-1][1], load(tmp_path / "ema/model_final.pth")["model"])
    assert not same(Tiny.evaluated[-1][1], Tiny.raw[-1])


class PerImage(Tiny):
    """A model whose loss is a mean over images, and four of them an iteration."""

    @classmethod
    def build_model(cls, cfg):
        torch.manual_seed(0)
        model = Model()
        model.norm = nn.Identity()
        return model

    @classmethod
    def build_train_loader(cls, cfg):
        return itertools.repeat(torch.cat([X, 2 * X[:1]]))


def test_a_batch_in_parts_is_the_same_training(make):
    finals = []
    for parts in (1, 2, 4):
        make(*EMA, "TRAIN.ACCUMULATE", parts, folder=f"{parts} parts", kind=PerImage).train()
        finals.append(Tiny.raw[-1] | {f"average {name}": value for name, value in Tiny.evaluated[-1][1].items()})
    for final in finals[1:]:
        assert final.keys() == finals[0].keys()
        assert all(torch.allclose(value, finals[0][name], rtol=1e-12, atol=0) for name, value in final.items())


class Convolution(Tiny):
    @classmethod
    def build_model(cls, cfg):
        model = super().build_model(cfg)
        model.backbone = nn.Conv2d(2, 2, 3)
        return model


@pytest.mark.parametrize("on", [True, False])
def test_the_model_and_its_average_run_as_switched(make, on):
    trainer = make(*EMA, "TRAIN.CHANNELS_LAST", on, kind=Convolution)
    for model in (trainer._bare_model, trainer._ema.averaged):
        assert model.backbone.weight.is_contiguous(memory_format=torch.channels_last) is on
        assert len(model.backbone._forward_pre_hooks) == on


AMP = ("SOLVER.AMP.ENABLED", True)


@pytest.mark.parametrize("before,after", [((), AMP), (AMP, ())])
def test_mixed_precision_switched_on_or_off_at_a_resume(make, before, after):
    make(*before).train()
    trained = Tiny.raw[-1]
    resumed = make(*after, "SOLVER.MAX_ITER", 8, resume=True)
    assert same(resumed._bare_model.state_dict(), trained)
    resumed.train()
    assert len(Tiny.raw) == 2 and not same(Tiny.raw[-1], trained)


def test_a_failing_evaluation_leaves_what_is_trained(make):
    trainer = make(*EMA, values={4: "fails"})
    with pytest.raises(RuntimeError, match="evaluation fails"):
        trainer.train()
    assert same(trainer._bare_model.state_dict(), Tiny.raw[3])


@pytest.mark.parametrize("switches", [(), EMA])
def test_interrupted_and_resumed_equals_uninterrupted(make, tmp_path, switches):
    make(*switches, "SOLVER.CHECKPOINT_PERIOD", 3).train()
    whole = load(tmp_path / "out/model_final.pth")
    (tmp_path / "out/last_checkpoint").write_text("model_0000002.pth")
    (tmp_path / "out/model_final.pth").unlink()
    trainer = make(*switches, "SOLVER.CHECKPOINT_PERIOD", 3, resume=True)
    assert trainer.start_iter == 3
    trainer.train()
    parts = load(tmp_path / "out/model_final.pth")
    assert len(Tiny.raw) == 3 and parts.keys() == whole.keys() and ("raw_model" in parts) == bool(switches)
    for key in ("model", "raw_model"):
        assert key not in whole or same(whole[key], parts[key])
    assert whole["trainer"]["hooks"] == parts["trainer"]["hooks"]


def test_ema_switched_on_or_off_at_a_resume(make, tmp_path, caplog):
    make().train()
    trained = Tiny.raw[-1]
    on = make(*EMA, "SOLVER.MAX_ITER", 8, resume=True)
    assert same(on._bare_model.state_dict(), trained)
    on.train()
    trained = Tiny.raw[-1]
    off = make("SOLVER.MAX_ITER", 9, resume=True)
    assert same(off._bare_model.state_dict(), trained) and "goes on from its weights before averaging" in caplog.text


def test_weights_to_begin_from_are_the_models_too(make, tmp_path):
    make().train()
    weights = tmp_path / "out/model_final.pth"
    trainer = make(*EMA, "MODEL.WEIGHTS", weights, folder="new")
    assert trainer.start_iter == 0 and same(trainer._bare_model.state_dict(), load(weights)["model"])


BEST = ("TRAIN.BEST", True)


def test_the_best_is_kept_and_is_not_what_a_run_resumes_from(make, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    make(*BEST, *EMA, values={2: 1.0, 4: 3.0, 6: 2.0}).train()
    best = load(tmp_path / "out/model_best.pth")
    assert best["best"] == {"metric": "bbox/AP", "value": 3.0, "iteration": 4} and best["iteration"] == 3
    assert same(best["model"], Tiny.evaluated[1][1]) and best["classes"]["names"] == ["thing"]
    assert "trainer" not in best and "raw_model" not in best
    assert (tmp_path / "out/last_checkpoint").read_text() == "model_final.pth"
    assert "The best bbox/AP is 3.00, after 4 iterations" in caplog.text
    assert not list((tmp_path / "out").glob("*.part"))


def test_the_evaluation_at_the_end_may_be_the_best(make, tmp_path):
    make(*BEST, values={2: 1.0, 4: float("nan"), 6: 2.0}).train()
    assert load(tmp_path / "out/model_best.pth")["best"]["iteration"] == 6


@pytest.mark.parametrize("value,iteration", [(2.9, 4), (3.1, 8)])
def test_a_resumed_run_remembers_the_best(make, tmp_path, value, iteration):
    make(*BEST, values={4: 3.0}).train()
    make(*BEST, "SOLVER.MAX_ITER", 8, values={8: value}, resume=True).train()
    assert load(tmp_path / "out/model_best.pth")["best"]["iteration"] == iteration


def test_the_best_of_a_crashed_run_is_kept_where_no_checkpoint_is(make, tmp_path):
    with pytest.raises(RuntimeError):
        make(*BEST, values={2: 5.0, 4: "fails"}).train()
    assert not (tmp_path / "out/last_checkpoint").exists()
    make(*BEST, values={2: 4.0}, resume=True).train()
    assert load(tmp_path / "out/model_best.pth")["best"]["value"] == 5.0


STOP = ("TRAIN.EARLY_STOP.PATIENCE", 2, "SOLVER.MAX_ITER", 20)


def test_it_stops_early_with_all_that_an_end_has(make, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    make(*STOP, *BEST, *EMA, values={2: 1.0, 4: 3.0, 6: 3.0, 8: 2.0, 10: 9.0}).train()
    assert [iteration for iteration, _ in Tiny.evaluated] == [2, 4, 6, 8]
    assert load(tmp_path / "out/model_final.pth")["iteration"] == 7
    assert (tmp_path / "out/last_checkpoint").read_text() == "model_final.pth"
    assert (
        caplog.text.count("Training stops early, after 8 of 20 iterations: the last 2 evaluations did not raise") == 1
    )
    assert "Exception" not in caplog.text and "Total training time" in caplog.text
    assert "The best bbox/AP is 3.00, after 4 iterations" in caplog.text


def test_a_gain_below_min_delta_does_not_count(make):
    values = {iteration: 1 + 0.1 * iteration for iteration in range(2, 21, 2)}
    make(*STOP, "TRAIN.EARLY_STOP.MIN_DELTA", 0.3, values=values).train()
    assert Tiny.evaluated[-1][0] == 20  # it rises by 0.4 in two evaluations
    make(*STOP, "TRAIN.EARLY_STOP.MIN_DELTA", 0.5, values=values, folder="other").train()
    assert Tiny.evaluated[-1][0] == 6


def test_a_stopped_run_goes_on_with_more_patience_only(make, caplog):
    values = {2: 1.0, 4: 1.0, 6: 1.0, 8: 1.0, 10: 2.0}
    make(*STOP, values=values).train()
    make(*STOP, values=values, resume=True).train()
    assert not Tiny.raw and not Tiny.evaluated and "Raise TRAIN.EARLY_STOP.PATIENCE to go on" in caplog.text
    make(*STOP, "TRAIN.EARLY_STOP.PATIENCE", 4, "SOLVER.MAX_ITER", 12, values=values, resume=True).train()
    assert [iteration for iteration, _ in Tiny.evaluated] == [8, 10, 12]


def test_a_resume_counts_the_evaluation_of_the_checkpoints_own_iteration(make):
    """The checkpoint is written before that evaluation, so nothing in it can know its value."""
    values = {2: 5.0, 4: 4.0, 6: "fails"}
    with pytest.raises(RuntimeError):
        make(*STOP, "SOLVER.CHECKPOINT_PERIOD", 4, values=values).train()
    make(*STOP, "SOLVER.CHECKPOINT_PERIOD", 4, values={6: 4.0, 8: 6.0}, resume=True).train()
    assert [iteration for iteration, _ in Tiny.evaluated] == [6]


def test_all_processes_stop_when_the_main_one_does(make, monkeypatch):
    asked = []
    monkeypatch.setattr(
        comm, "all_gather", lambda mine: asked.append(mine) or ["the main one says so" * (len(asked) > 2), mine]
    )
    make(*STOP, values={iteration: float(iteration) for iteration in range(2, 21, 2)}).train()
    assert Tiny.evaluated[-1][0] == 4  # asked once before training, and after each evaluation only
    assert asked == ["", "", ""]


def test_evaluations_that_scaling_took_away_are_missed_before_training(make, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 8)
    with pytest.raises(GNDetError, match="TEST.EVAL_PERIOD is 0"):
        make(*STOP, "SOLVER.REFERENCE_WORLD_SIZE", 1)


def test_hooks_have_their_turn_in_the_right_order(make):
    kinds = [type(hook) for hook in make(*EMA, *BEST, *STOP)._hooks]
    known = [type(make(*EMA)._ema), hooks.PeriodicCheckpointer, hooks.EvalHook, BestCheckpoint, hooks.PeriodicWriter]
    assert [kind for kind in kinds if kind in (*known, EarlyStop)] == [*known, EarlyStop] and kinds[-1] is EarlyStop


def test_on_a_terminal_the_bar_makes_room_for_evaluations(make, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("gn_det.training.trainer.on_terminal", lambda: True)
    monkeypatch.setattr("gn_det.training.trainer.show_predictions", lambda cfg: print("an evaluation speaks"))
    terminal = Terminal()
    with contextlib.redirect_stdout(terminal):
        make().train()
    lines = [line for line in terminal.screen() if line]
    assert (
        lines[0] == lines[1] == lines[3] == "an evaluation speaks" and lines[2].startswith("6/6 |") and len(lines) == 4
    )
    assert "loss" in lines[2] and "lr" in lines[2]


def test_the_overview_is_said_once(make, caplog):
    caplog.set_level(logging.INFO)
    make().train()
    assert caplog.text.count("What is trained: quickstart_R18_FPN_gn_scratch") == 1


def test_the_train_loader_counts_before_it_leaves_images_out(make):
    rows = [{"file_name": "x", "height": 4, "width": 4, "annotations": row["annotations"]} for row in ROWS]
    cfg = make().cfg.clone()
    DatasetCatalog.remove("tiny")
    DatasetCatalog.register("tiny", lambda: rows)
    loader = Trainer.build_train_loader(cfg)
    assert loader.counts.images == 2 and loader.counts.empty == 1 and len(loader.dataset.dataset.dataset) == 1


@pytest.mark.slow
def test_switches_from_the_shell_on_two_processes(tmp_path):
    shapes.generate(tmp_path / "shapes", num_train=6, num_val=2, seed=1, size=96)
    words = ["--config", "quickstart_R18_FPN_gn_scratch", "--num-gpus", 2, *own_data(tmp_path / "shapes")]
    short = """SOLVER.MAX_ITER 6 SOLVER.STEPS () SOLVER.IMS_PER_BATCH 2 SEED 5 DATALOADER.NUM_WORKERS 0 TEST.EVAL_PERIOD 2
        MODEL.RPN.POST_NMS_TOPK_TEST 10 TRAIN.BEST True TRAIN.EMA.ENABLED True TRAIN.EARLY_STOP.MIN_DELTA 100.0
        TRAIN.PICTURES 1""".split()
    output = tmp_path / "out"
    done = run_tool(*words, *short, "TRAIN.EARLY_STOP.PATIENCE", 1, "OUTPUT_DIR", output)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (
        "Training stops early, after 4 of 6 iterations" in done.stdout and str(output / "model_best.pth") in done.stdout
    )
    final, best = load(output / "model_final.pth"), load(output / "model_best.pth")
    assert final["model"].keys() == final["raw_model"].keys() == best["model"].keys() and final["iteration"] == 3
    assert not any(key.startswith("module.") for key in final["model"])
    done = run_tool(*words, "--resume", *short, "TRAIN.EARLY_STOP.PATIENCE", 5, "OUTPUT_DIR", output)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "goes on from 4" in done.stdout and load(output / "model_final.pth")["iteration"] == 5
    names = sorted(path.name[-12:] for path in (output / "records").iterdir())
    assert names == ["0000002.json", "0000004.json", "0000006.json"]
