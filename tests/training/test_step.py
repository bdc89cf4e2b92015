"""Training step on a model whose loss is a mean over images, so that the parts of a batch must add up to the whole batch."""

import contextlib
import itertools

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import nn

from gn_det import GNDetError
from gn_det.config.files import load_config
from gn_det.training.guards.finite import FiniteGuard
from gn_det.training.step import TrainStep, build_train_step
from helpers.errors import error_sentence

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(3, 8, 2, generator=GENERATOR, dtype=torch.float64)  # iterations, images, inputs
Y = torch.randn(3, 8, generator=GENERATOR, dtype=torch.float64)
RATE = 0.1


class Linear(nn.Module):
    """Model with the losses (w x - y)^2 / 2 and 3 (w x), each a mean over the images.

    Attributes:
        given: number of images of each call.
        types: data types of the outputs.
        synced: for each backward pass, whether DDP would have exchanged the gradient.
    """

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
        self.given, self.types, self.waits = [], set(), False
        self.synced = []
        self.w.register_hook(lambda _: self.synced.append(not self.waits))

    def forward(self, images):
        self.given.append(len(images))
        x, y = (torch.stack(values).to(self.w.dtype) for values in zip(*images, strict=True))
        out = nn.functional.linear(x, self.w)
        self.types.add(out.dtype)
        return {"loss_a": (out[:, 0] - y).square().mean() / 2, "loss_b": 3 * out.mean()}


class Synced(Linear):
    """Linear with the method ``no_sync`` of DDP."""

    @contextlib.contextmanager
    def no_sync(self):
        self.waits = True
        yield
        self.waits = False


def batches():
    return itertools.cycle([list(zip(x, y, strict=True)) for x, y in zip(X, Y, strict=True)])


def make(model=None, kind=TrainStep, momentum=0.0, **options):
    model = model or Linear()
    return kind(model, batches(), torch.optim.SGD(model.parameters(), RATE, momentum), **options)


def closed_form(steps: int = 3) -> tuple[torch.Tensor, list[float]]:
    """Return w after the steps, and loss_a before each step."""
    w, losses = torch.tensor([1.0, -2.0], dtype=torch.float64), []
    for x, y in zip(X[:steps], Y[:steps], strict=True):
        losses.append((x @ w - y).square().mean().item() / 2)
        w = w - RATE * (x.T @ (x @ w - y) / len(x) + 3 * x.mean(0))
    return w, losses


@pytest.mark.parametrize(("parts", "sizes"), [(1, [8]), (2, [4, 4]), (4, [2, 2, 2, 2]), (3, [3, 3, 2])])
def test_step_in_parts_equals_step_with_the_whole_batch(parts, sizes):
    step = make(parts=parts)
    step.train(0, 3)
    w, losses = closed_form()
    assert torch.allclose(step.model.w[0], w, rtol=1e-12, atol=0) and step.model.given == 3 * sizes
    logged = [value for value, _ in step.storage.history("loss_a").values()]
    assert logged == pytest.approx(losses, rel=1e-12)


def test_step_without_options_equals_step_of_simple_trainer():
    step, stock = make(momentum=0.9), make(kind=SimpleTrainer, momentum=0.9)
    for trainer in (step, stock):
        trainer.train(0, 3)
    assert torch.equal(step.model.w, stock.model.w)
    assert step.storage.history("total_loss").values() == stock.storage.history("total_loss").values()


def test_gradients_are_exchanged_only_with_the_last_part():
    step = make(Synced(), parts=4)
    step.train(0, 2)
    assert step.model.synced == 2 * [False, False, False, True]


class Broken(Linear):
    """Linear whose losses or gradients are NaN or infinite in some calls.

    Args:
        faults: for each call, "loss", "gradient", "proposals" (as detectron2's RPN raises it) or "".
    """

    def __init__(self, *faults: str):
        super().__init__()
        self.faults = iter(faults)

    def forward(self, images):
        losses = super().forward(images)
        fault = next(self.faults, "")
        if fault == "proposals":
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. Training has diverged.")
        if fault == "loss":
            losses["loss_a"] = losses["loss_a"] + torch.inf  # the gradient stays finite
        if fault == "gradient":  # of the square root at 0
            losses["loss_a"] = losses["loss_a"] + (0 * self.w).abs().sum().sqrt()
        return losses


def named_batches():
    """Batches with the file names that detectron2's loader gives."""

    class Row(dict):
        def __iter__(self):
            return iter(self["row"])

    for number, rows in enumerate(batches()):
        yield [Row(row=row, file_name=f"{number}-{index}.jpg") for index, row in enumerate(rows)]


def make_broken(*faults: str, skip: int = 0, **options) -> TrainStep:
    model = Broken(*faults)
    guard = FiniteGuard(skip, lambda: "out/model_0000002.pth")
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
    return TrainStep(model, named_batches(), optimizer, guard=guard, **options)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("loss", "a loss that is not finite (loss_a inf, loss_b "),
        ("gradient", "a gradient that is NaN or infinite, with the images 1-0.jpg, 1-1.jpg,"),
        ("proposals", "an error in the forward pass (Predicted boxes or scores contain Inf/NaN."),
    ],
)
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("last", [False, True], ids=["within the training", "in the last iteration"])
def test_a_value_that_is_not_finite_raises_before_the_optimizer_step(fault, said, parts, last):
    step = make_broken(*[""] * parts, *[""] * (parts - 1), fault, parts=parts)
    sentence = error_sentence(step.train, 0, 2 if last else 4)
    assert said in sentence and "iteration=1" in sentence and "out/model_0000002.pth with --resume" in sentence
    assert "1-0.jpg" in sentence and "1-7.jpg" in sentence and "0-0.jpg" not in sentence
    assert torch.allclose(step.model.w[0], closed_form(1)[0], rtol=1e-12)
    assert step.storage.history("total_loss").values()[-1][1] == 0


@pytest.mark.parametrize("fault", ["loss", "gradient", "proposals"])
def test_batches_that_are_not_finite_can_be_skipped(fault, caplog):
    step = make_broken("", fault, fault, skip=2)
    step.train(0, 3)
    assert torch.allclose(step.model.w[0], closed_form(1)[0], rtol=1e-12) and step._guard.skipped == 2
    assert [f"iteration {n}, because of" in caplog.messages[-2:][n - 1] for n in (1, 2)] == [True, True]
    assert "2-0.jpg" in caplog.messages[-1] and "(number 2 of at most 2, TRAIN.SKIP_NONFINITE)" in caplog.messages[-1]
    step = make_broken(fault, fault, fault, skip=2)
    assert "iteration=2" in error_sentence(step.train, 0, 4) and torch.equal(step.model.w, Linear().w)


def test_a_batch_that_spoils_running_statistics_is_not_skipped():
    step = make_broken("loss", skip=2)
    step.model.register_buffer("running_mean", torch.tensor([torch.nan]))
    assert "iteration=0" in error_sentence(step.train, 0, 1)


def test_float16_stops_if_gradients_are_never_finite():
    step = make(Steep(torch.nan), dtype=torch.float16)
    step.model.forward = lambda images: (step.model.w * 0).abs().sqrt().sum()
    sentence = error_sentence(step.train, 0, 100)
    assert "iteration=16" in sentence and "gradient" in sentence and step.model.w.item() == 1


def test_at_most_one_transfer_from_the_device(monkeypatch):
    transfers = []
    for name in ("item", "tolist", "cpu", "__bool__", "__float__"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, name=name, original=original):
            transfers.append(name)
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    monkeypatch.setattr(SimpleTrainer, "write_metrics", lambda *args: None)  # it reads values that are on the host
    make(dtype=torch.float16, model=Steep(1.0)).train(0, 3)
    assert transfers == 3 * ["tolist"]


@pytest.mark.parametrize("parts", [1, 4])
def test_mixed_precision_on_a_cpu(parts):
    step = make(Linear().float(), dtype=torch.bfloat16, parts=parts)
    step.train(0, 3)
    w = closed_form()[0].float()
    assert step.model.types == {torch.bfloat16} and step.model.w.dtype == torch.float32
    assert not torch.allclose(step.model.w[0], w, rtol=1e-4) and torch.allclose(step.model.w[0], w, rtol=0.03)


class Steep(nn.Module):
    """Model with the loss ``factor`` w, as a matrix product. In float16, a gradient below 6e-8 would become 0."""

    def __init__(self, factor: float):
        super().__init__()
        self.w, self.factor = nn.Parameter(torch.ones(1, 1)), factor

    def forward(self, images):
        return nn.functional.linear(torch.ones(1, 1), self.w).float().mean() * self.factor


def test_float16_keeps_small_gradients():
    step = make(Steep(1e-8), dtype=torch.float16)
    step.train(0, 1)
    assert step.model.w.grad.item() == pytest.approx(1e-8, rel=1e-3)
    step = make(Steep(1e-8), dtype=torch.bfloat16)
    step.train(0, 1)
    assert step.model.w.grad.item() == pytest.approx(1e-8, rel=1e-2)


def test_float16_skips_the_step_if_gradients_overflow():
    step = make(Steep(1e4), dtype=torch.float16)
    step.train(0, 1)
    assert step.model.w.item() == 1 and step.state_dict()["grad_scaler"]["scale"] == 2.0**15


def test_each_precision_resumes_from_each_other():
    states = {}
    for dtype in (None, torch.bfloat16, torch.float16):
        step = make(Steep(1e4), dtype=dtype, momentum=0.9)
        step.train(0, 2)
        states[dtype] = step.state_dict()
    assert [("grad_scaler" in state) for state in states.values()] == [False, False, True]
    for dtype, state in itertools.product(states, states.values()):
        step = make(Steep(1e4), dtype=dtype, momentum=0.9)
        step.load_state_dict(state)
        assert step.iter == 2 and step.state_dict()["optimizer"] == state["optimizer"]
        scale = step.state_dict().get("grad_scaler", {}).get("scale")
        assert scale == (None if dtype is not torch.float16 else state.get("grad_scaler", {}).get("scale", 2.0**16))


def test_build_train_step_follows_the_config(monkeypatch):
    def build(*opts):
        cfg = load_config("quickstart_R18_FPN_gn_scratch", [str(word) for word in opts])
        return build_train_step(cfg, model := Linear(), batches(), torch.optim.SGD(model.parameters(), RATE))

    step = build("MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", True, "TRAIN.ACCUMULATE", 2)
    with EventStorage():
        step.run_step()
    assert step.model.given == [4, 4] and torch.allclose(step.model.w[0], closed_form(1)[0])
    assert (step._device, step._dtype) == ("cpu", torch.bfloat16) and build()._dtype is None
    for supported in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, value=supported: value)
        with contextlib.nullcontext() if supported else pytest.raises(GNDetError, match="AMP_DTYPE to float16"):
            build("MODEL.DEVICE", "cuda:0", "SOLVER.AMP.ENABLED", True)
