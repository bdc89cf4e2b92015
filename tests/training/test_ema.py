"""EMA of the weights, compared with its closed form."""

import pytest
import torch
from torch import nn

from gn_det.training.ema import EMA


def trained(decay: float, steps: int) -> tuple[EMA, list[dict]]:
    """Return an EMA of a float64 batch norm whose state is set at random in each step, and these states."""
    model = nn.BatchNorm1d(3).double()
    model.bias.requires_grad_(False)
    hook, states = EMA(model, decay), []
    for step in range(steps):
        with torch.no_grad():
            for tensor in (model.weight, model.running_mean, model.running_var):
                tensor.copy_(torch.rand(3, dtype=torch.float64))
            model.num_batches_tracked.fill_(10 * step + 7)
        hook.after_step()
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    return hook, states


def closed_form(values: list[torch.Tensor], decay: float) -> torch.Tensor:
    """sum over t of (1 - d_t) d_(t+1) ... d_T W_t, with d_0 = 0."""
    decays = [0.0] + [min(decay, (1 + t) / (10 + t)) for t in range(1, len(values))]
    terms = []
    for t, value in enumerate(values):
        later = torch.tensor(decays[t + 1 :], dtype=torch.float64).prod()
        terms.append((1 - decays[t]) * later * value)
    return torch.stack(terms).sum(0)


@pytest.mark.parametrize("decay", [0.3, 0.999])
@pytest.mark.parametrize("name", ["weight", "running_mean", "running_var"])
def test_average_of_weights_and_batch_norm_statistics_matches_closed_form(decay, name):
    hook, states = trained(decay, 40)
    expected = closed_form([state[name] for state in states], decay)
    assert torch.allclose(hook.averaged.state_dict()[name], expected, rtol=1e-13, atol=0)


def test_frozen_parameters_and_counts_equal_those_of_the_model():
    hook, states = trained(0.999, 5)
    assert hook.averaged.state_dict()["num_batches_tracked"] == states[-1]["num_batches_tracked"] == 47
    assert torch.equal(hook.averaged.bias, states[-1]["bias"])
    assert not any(parameter.requires_grad for parameter in hook.averaged.parameters())


def test_average_continues_from_saved_state():
    hook, states = trained(0.999, 4)
    other, _ = trained(0.999, 1)
    other.averaged.load_state_dict(hook.averaged.state_dict())
    other.load_state_dict(hook.state_dict())
    other.model.load_state_dict(hook.model.state_dict())
    other.after_load()
    for one in (hook, other):
        one.after_step()
    assert all(torch.equal(a, b) for a, b in zip(hook.averaged.buffers(), other.averaged.buffers(), strict=True))
    assert torch.equal(hook.averaged.weight, other.averaged.weight)
