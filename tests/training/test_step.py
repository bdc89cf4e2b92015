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
from gn_det.training.step import TrainStep, build_train_step

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


def test_infinite_loss_raises_before_the_optimizer_step():
    step = make(parts=2)
    rows = next(batches())
    rows[6][0].fill_(torch.inf)
    try:
        step.data_loader = [rows]
        with pytest.raises(FloatingPointError, match="Loss became infinite or NaN"):
            step.train(0, 1)
    finally:
        rows[6][0].copy_(torch.zeros(2))
    assert torch.equal(step.model.w, Linear().w)


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
