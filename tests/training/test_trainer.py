"""Trainer on a tiny model: EMA, best weights, early stop, resuming, and other training options."""

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
from gn_det.evaluation.records import write_record
from gn_det.training.guards.hooks import Evaluation, StopOnSignal
from gn_det.training.hooks import BestCheckpoint, EarlyStop, ReadMetrics
from gn_det.training.trainer import Trainer, _trained_iterations
from helpers.terminal import Terminal

ROWS = [{"annotations": [{"category_id": 0}]}, {"annotations": []}]
X = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]], dtype=torch.float64)


class Model(nn.Module):
    """A frozen layer, batch norm with its buffers, and a trained layer, in float64."""

    def __init__(self):
        super().__init__()
        self.frozen, self.norm, self.last = nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)
        self.frozen.requires_grad_(False)
        self.double()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss_all": (self.last(self.norm(self.frozen(x))) - 1).square().mean()}


class Tiny(Trainer):
    """Trainer whose evaluations return given values and write a record, as those of gn_det do.

    Attributes:
        values: value of the metric by the number of trained iterations; "fails" lets the evaluation raise.
        evaluated: (number of trained iterations, state dict) of each evaluation.
        raw: state dict of the trained model after each iteration.
    """

    values: dict[int, float] = {}
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
        self.raw.append({name: value.clone() for name, value in self._unwrapped_model.state_dict().items()})
        super().after_step()

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        iteration = _trained_iterations(cfg)
        value = cls.values.get(iteration, 0.0)
        cls.evaluated.append((iteration, {k: v.clone() for k, v in model.state_dict().items()}))
        if value == "fails":
            raise RuntimeError("evaluation fails")
        record = {"config": "x", "dataset": "tiny", "iteration": iteration, "box": {"AP": value}, "mask": None}
        write_record(cfg.OUTPUT_DIR, record)
        return {"bbox": {"AP": value}}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Function of (overrides, values by iteration, resume): returns a trainer that is ready to train."""
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
        always += ["MODEL.GN.IGNORE_PADDING", False]  # the model is not a detector
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


def test_checkpoints_contain_averaged_and_trained_weights(make, tmp_path):
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


def test_evaluations_use_the_average_and_do_not_change_the_trained_weights(make, tmp_path):
    make().train()
    plain = Tiny.raw
    make(*EMA, folder="ema").train()
    assert [iteration for iteration, _ in Tiny.evaluated] == [2, 4, 6]
    assert all(same(a, b) for a, b in zip(plain, Tiny.raw, strict=True))
    assert same(Tiny.evaluated[-1][1], load(tmp_path / "ema/model_final.pth")["model"])
    assert not same(Tiny.evaluated[-1][1], Tiny.raw[-1])


class PerImage(Tiny):
    """Trainer of a model whose loss is a mean over images, with four images per iteration."""

    @classmethod
    def build_model(cls, cfg):
        torch.manual_seed(0)
        model = Model()
        model.norm = nn.Identity()
        return model

    @classmethod
    def build_train_loader(cls, cfg):
        return itertools.repeat(torch.cat([X, 2 * X[:1]]))


def test_training_with_gradient_accumulation_is_the_same(make):
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
def test_channels_last_applies_to_the_model_and_its_average(make, on):
    trainer = make(*EMA, "TRAIN.CHANNELS_LAST", on, kind=Convolution)
    for model in (trainer._unwrapped_model, trainer._ema.averaged):
        assert model.backbone.weight.is_contiguous(memory_format=torch.channels_last) is on
        assert len(model.backbone._forward_pre_hooks) == on


@pytest.mark.parametrize("on", [True, False])
def test_metrics_on_the_device_are_read_before_they_are_written(make, monkeypatch, on):
    monkeypatch.setattr("gn_det.acceleration.training.use_fewer_syncs", lambda model: model)
    kinds = [type(hook) for hook in make("TRAIN.FEWER_SYNCS", on)._hooks]
    assert (ReadMetrics in kinds) is on
    assert not on or kinds.index(ReadMetrics) < kinds.index(hooks.PeriodicWriter)


AMP = ("SOLVER.AMP.ENABLED", True)


@pytest.mark.parametrize(("before", "after"), [((), AMP), (AMP, ())])
def test_mixed_precision_can_be_turned_on_or_off_when_resuming(make, before, after):
    make(*before).train()
    trained = Tiny.raw[-1]
    resumed = make(*after, "SOLVER.MAX_ITER", 8, resume=True)
    assert same(resumed._unwrapped_model.state_dict(), trained)
    resumed.train()
    assert len(Tiny.raw) == 2 and not same(Tiny.raw[-1], trained)


def test_failing_evaluation_does_not_change_the_trained_weights(make):
    trainer = make(*EMA, values={4: "fails"})
    with pytest.raises(RuntimeError, match="evaluation fails"):
        trainer.train()
    assert same(trainer._unwrapped_model.state_dict(), Tiny.raw[3])


@pytest.mark.parametrize("options", [(), EMA])
def test_resumed_training_equals_uninterrupted_training(make, tmp_path, options):
    make(*options, "SOLVER.CHECKPOINT_PERIOD", 3).train()
    whole = load(tmp_path / "out/model_final.pth")
    (tmp_path / "out/last_checkpoint").write_text("model_0000002.pth")
    (tmp_path / "out/model_final.pth").unlink()
    trainer = make(*options, "SOLVER.CHECKPOINT_PERIOD", 3, resume=True)
    assert trainer.start_iter == 3
    trainer.train()
    parts = load(tmp_path / "out/model_final.pth")
    assert len(Tiny.raw) == 3 and parts.keys() == whole.keys() and ("raw_model" in parts) == bool(options)
    for key in ("model", "raw_model"):
        assert key not in whole or same(whole[key], parts[key])
    assert whole["trainer"]["hooks"] == parts["trainer"]["hooks"]


def test_ema_can_be_turned_on_or_off_when_resuming(make, tmp_path, caplog):
    make().train()
    trained = Tiny.raw[-1]
    on = make(*EMA, "SOLVER.MAX_ITER", 8, resume=True)
    assert same(on._unwrapped_model.state_dict(), trained)
    on.train()
    trained = Tiny.raw[-1]
    off = make("SOLVER.MAX_ITER", 9, resume=True)
    assert (
        same(off._unwrapped_model.state_dict(), trained)
        and "training resumes from the weights before averaging" in caplog.text
    )


def test_initial_weights_are_loaded_into_model_and_average(make, tmp_path):
    make().train()
    weights = tmp_path / "out/model_final.pth"
    trainer = make(*EMA, "MODEL.WEIGHTS", weights, folder="new")
    assert trainer.start_iter == 0 and same(trainer._unwrapped_model.state_dict(), load(weights)["model"])


BEST = ("TRAIN.BEST", True)


def test_best_weights_are_saved_and_do_not_become_the_last_checkpoint(make, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    make(*BEST, *EMA, values={2: 1.0, 4: 3.0, 6: 2.0}).train()
    best = load(tmp_path / "out/model_best.pth")
    assert best["best"] == {"metric": "bbox/AP", "value": 3.0, "iteration": 4} and best["iteration"] == 3
    assert same(best["model"], Tiny.evaluated[1][1]) and best["classes"]["names"] == ["thing"]
    assert "trainer" not in best and "raw_model" not in best
    assert (tmp_path / "out/last_checkpoint").read_text() == "model_final.pth"
    assert "The best bbox/AP is 3.00, after 4 iterations" in caplog.text
    assert not list((tmp_path / "out").glob("*.part"))


def test_final_evaluation_can_be_the_best(make, tmp_path):
    make(*BEST, values={2: 1.0, 4: float("nan"), 6: 2.0}).train()
    assert load(tmp_path / "out/model_best.pth")["best"]["iteration"] == 6


@pytest.mark.parametrize(("value", "iteration"), [(2.9, 4), (3.1, 8)])
def test_resumed_run_compares_with_the_best_so_far(make, tmp_path, value, iteration):
    make(*BEST, values={4: 3.0}).train()
    make(*BEST, "SOLVER.MAX_ITER", 8, values={8: value}, resume=True).train()
    assert load(tmp_path / "out/model_best.pth")["best"]["iteration"] == iteration


def test_best_weights_of_a_run_that_crashed_before_its_first_checkpoint_are_kept(make, tmp_path):
    with pytest.raises(RuntimeError):
        make(*BEST, values={2: 5.0, 4: "fails"}).train()
    assert not (tmp_path / "out/last_checkpoint").exists()
    make(*BEST, values={2: 4.0}, resume=True).train()
    assert load(tmp_path / "out/model_best.pth")["best"]["value"] == 5.0


STOP = ("TRAIN.EARLY_STOP.PATIENCE", 2, "SOLVER.MAX_ITER", 20)


def test_early_stop_saves_and_logs_like_a_normal_end(make, tmp_path, caplog):
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


def test_improvement_below_min_delta_does_not_count(make):
    values = {iteration: 1 + 0.1 * iteration for iteration in range(2, 21, 2)}
    make(*STOP, "TRAIN.EARLY_STOP.MIN_DELTA", 0.3, values=values).train()
    assert Tiny.evaluated[-1][0] == 20  # the metric rises by 0.4 in two evaluations
    make(*STOP, "TRAIN.EARLY_STOP.MIN_DELTA", 0.5, values=values, folder="other").train()
    assert Tiny.evaluated[-1][0] == 6


def test_stopped_run_only_continues_with_more_patience(make, caplog):
    values = {2: 1.0, 4: 1.0, 6: 1.0, 8: 1.0, 10: 2.0}
    make(*STOP, values=values).train()
    make(*STOP, values=values, resume=True).train()
    assert not Tiny.raw and not Tiny.evaluated and "Raise TRAIN.EARLY_STOP.PATIENCE to continue it" in caplog.text
    make(*STOP, "TRAIN.EARLY_STOP.PATIENCE", 4, "SOLVER.MAX_ITER", 12, values=values, resume=True).train()
    assert [iteration for iteration, _ in Tiny.evaluated] == [8, 10, 12]


def test_resumed_run_counts_the_evaluation_of_the_iteration_of_its_checkpoint(make):
    """The checkpoint is written before that evaluation, so it cannot contain the value."""
    values = {2: 5.0, 4: 4.0, 6: "fails"}
    with pytest.raises(RuntimeError):
        make(*STOP, "SOLVER.CHECKPOINT_PERIOD", 4, values=values).train()
    make(*STOP, "SOLVER.CHECKPOINT_PERIOD", 4, values={6: 4.0, 8: 6.0}, resume=True).train()
    assert [iteration for iteration, _ in Tiny.evaluated] == [6]


def test_all_processes_stop_when_the_main_process_stops(make, monkeypatch):
    gathered = []
    monkeypatch.setattr(
        comm,
        "all_gather",
        lambda reason: gathered.append(reason) or ["the reason of the main process" * (len(gathered) > 2), reason],
    )
    make(*STOP, "SEED", 1, values={iteration: float(iteration) for iteration in range(2, 21, 2)}).train()
    assert Tiny.evaluated[-1][0] == 4  # gathered once before training, and then only after each evaluation
    assert gathered == ["", "", ""]


def test_evaluation_period_that_scaling_reduced_to_0_is_refused(make, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 8)
    with pytest.raises(GNDetError, match="TEST.EVAL_PERIOD is 0"):
        make(*STOP, "SOLVER.REFERENCE_WORLD_SIZE", 1)


def test_hooks_are_in_the_right_order(make):
    kinds = [type(hook) for hook in make(*EMA, *BEST, *STOP)._hooks]
    known = [type(make(*EMA)._ema), hooks.PeriodicCheckpointer, StopOnSignal, Evaluation, BestCheckpoint]
    known.append(hooks.PeriodicWriter)
    assert [kind for kind in kinds if kind in (*known, EarlyStop)] == [*known, EarlyStop] and kinds[-1] is EarlyStop


def test_progress_bar_is_hidden_during_evaluations(make, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("gn_det.training.trainer.on_terminal", lambda: True)
    monkeypatch.setattr("gn_det.training.trainer.show_predictions", lambda cfg: print("output of an evaluation"))
    terminal = Terminal()
    with contextlib.redirect_stdout(terminal):
        make().train()
    lines = [line for line in terminal.screen() if line]
    assert lines[0] == lines[1] == lines[3] == "output of an evaluation" and len(lines) == 4
    assert lines[2].startswith("6/6 |")
    assert "loss" in lines[2] and "lr" in lines[2]


def test_overview_is_logged_once(make, caplog):
    caplog.set_level(logging.INFO)
    make().train()
    assert caplog.text.count("Training overview: quickstart_R18_FPN_gn_scratch") == 1


def test_train_loader_counts_images_before_it_leaves_some_out(make):
    rows = [{"file_name": "x", "height": 4, "width": 4, "annotations": row["annotations"]} for row in ROWS]
    cfg = make().cfg.clone()
    DatasetCatalog.remove("tiny")
    DatasetCatalog.register("tiny", lambda: rows)
    loader = Trainer.build_train_loader(cfg)
    assert loader.counts.images == 2 and loader.counts.empty == 1 and loader.images == 1
