"""The norms compared with the paper's equations (arXiv 1803.08494), which are written out here in float64."""

import math

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers.batch_norm import BatchNorm2d, FrozenBatchNorm2d, NaiveSyncBatchNorm
from detectron2.layers.batch_norm import LayerNorm as Detectron2LayerNorm
from detectron2.utils import comm
from torch import nn

from gn_det.config.defaults import get_cfg
from gn_det.errors import GNDetError
from gn_det.modeling.norm import (
    NORM_KEYS,
    check_groups,
    check_norm,
    get_key,
    is_norm,
    norm_layer,
    norm_parameters,
    num_groups,
    with_norms,
    zero_init_residual,
)

KEY = "MODEL.ROI_BOX_HEAD.NORM"


def make_cfg(norm: str, *opts) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", KEY, norm, *opts])
    return cfg


def make_norm(norm: str, channels: int, *opts) -> nn.Module:
    """Build the norm in float64, with a different scale and shift per channel."""
    module = norm_layer(make_cfg(norm, *opts), KEY)(channels).double()
    with torch.no_grad():
        module.weight.copy_(torch.linspace(0.5, 2, channels))
        module.bias.copy_(torch.linspace(-1, 1, channels))
    return module


def features(samples: int, channels: int, height: int = 5, width: int = 3) -> torch.Tensor:
    """Return features whose mean and spread differ per sample and channel, so that a wrong set S_i is detected."""
    shape = (samples, channels, 1, 1)
    x = torch.randn(samples, channels, height, width) * (0.1 + 3 * torch.rand(shape)) + 2 * torch.randn(shape)
    return x.double().requires_grad_()


def gn_set(channels: int, groups: int):
    """The (sample, channel) pairs of S_i by Eq. 7: k_N = i_N and floor(k_C / (C/G)) = floor(i_C / (C/G))."""
    size = channels / groups
    return lambda n, c, _: [(n, k) for k in range(channels) if math.floor(k / size) == math.floor(c / size)]


def ln_set(channels: int):
    """The pairs of S_i by Eq. 4: k_N = i_N."""
    return lambda n, c, _: [(n, k) for k in range(channels)]


def in_set(_channels: int):
    """The pairs of S_i by Eq. 5: k_N = i_N and k_C = i_C."""
    return lambda n, c, _: [(n, c)]


def bn_set(_channels: int):
    """The pairs of S_i by Eq. 3: k_C = i_C."""
    return lambda n, c, samples: [(k, c) for k in range(samples)]


def equations(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, members, eps: float = 1e-5) -> torch.Tensor:
    """Eq. 2, 1 and 6 for each set S_i; ``members(n, c, N)`` lists its (sample, channel) pairs."""
    y = []
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            s = torch.cat([x[k].flatten() for k in members(n, c, x.shape[0])])  # x_k for k in S_i
            m = s.numel()
            mu = s.sum() / m
            sigma = torch.sqrt(((s - mu) ** 2).sum() / m + eps)
            y.append(gamma[c] * (x[n, c] - mu) / sigma + beta[c])
    return torch.stack(y).view_as(x)


def assert_follows(module: nn.Module, x: torch.Tensor, members, eps: float = 1e-5) -> None:
    """Check that the output and the gradients of x, gamma and beta are those of the equations."""
    inputs = (x, module.weight, module.bias)
    got, want = module(x), equations(*inputs, members, eps)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    up = torch.randn_like(want)  # an arbitrary gradient of the output
    for g, w in zip(torch.autograd.grad(got, inputs, up), torch.autograd.grad(want, inputs, up), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (12, 4), (12, 1), (12, 12), (6, 3), (30, 5)])
def test_gn_matches_equation_7(channels, groups):
    module = make_norm("GN", channels, "MODEL.GN.NUM_GROUPS", groups)
    assert_follows(module, features(2, channels), gn_set(channels, groups))


@pytest.mark.parametrize(("channels", "per_group"), [(12, 1), (12, 3), (12, 12), (64, 16), (8, 2)])
def test_channels_per_group_sets_the_size_of_groups(channels, per_group):
    opts = ["MODEL.GN.NUM_GROUPS", -1, "MODEL.GN.CHANNELS_PER_GROUP", per_group]
    module = make_norm("GN", channels, *opts)
    assert module.num_groups == channels // per_group
    assert_follows(module, features(2, channels), gn_set(channels, channels // per_group))


@pytest.mark.parametrize("channels", [1, 7, 12])
def test_ln_matches_equation_4_and_gn_with_one_group(channels):
    x = features(3, channels)
    assert_follows(make_norm("LN", channels), x, ln_set(channels))
    torch.testing.assert_close(make_norm("LN", channels)(x), make_norm("GN", channels, "MODEL.GN.NUM_GROUPS", 1)(x))


@pytest.mark.parametrize("channels", [1, 7, 12])
def test_in_matches_equation_5_and_gn_with_one_channel_per_group(channels):
    x = features(3, channels)
    per_group = ["MODEL.GN.NUM_GROUPS", -1, "MODEL.GN.CHANNELS_PER_GROUP", 1]
    assert_follows(make_norm("IN", channels), x, in_set(channels))
    torch.testing.assert_close(make_norm("IN", channels)(x), make_norm("GN", channels, *per_group)(x))


def test_ln_differs_from_detectron2s_ln_which_is_per_pixel():
    x = features(2, 12)
    per_pixel = Detectron2LayerNorm(12, eps=1e-5).double()
    with torch.no_grad():
        per_pixel.weight.copy_(torch.linspace(0.5, 2, 12))
        per_pixel.bias.copy_(torch.linspace(-1, 1, 12))
    assert not torch.allclose(make_norm("LN", 12)(x), per_pixel(x), atol=1e-2)


@pytest.mark.parametrize("norm", ["GN", "LN", "IN"])
def test_gradients_match_finite_differences(norm):
    module = make_norm(norm, 6, "MODEL.GN.NUM_GROUPS", 3)

    def run(x, gamma, beta):
        return torch.func.functional_call(module, {"weight": gamma, "bias": beta}, (x,))

    parameters = [p.detach().clone().requires_grad_() for p in (module.weight, module.bias)]
    assert torch.autograd.gradcheck(run, (features(2, 6, 2, 2), *parameters))


@pytest.mark.parametrize("norm", ["GN", "LN", "IN"])
@pytest.mark.parametrize("eps", [1e-3, 0.5])
def test_eps_follows_the_config(norm, eps):
    members = {"GN": gn_set(8, 4), "LN": ln_set(8), "IN": in_set(8)}[norm]
    module = make_norm(norm, 8, "MODEL.GN.EPS", eps, "MODEL.GN.NUM_GROUPS", 4)
    assert_follows(module, features(2, 8), members, eps=eps)


def test_defaults_are_32_groups_and_eps_1e_5():
    module = make_norm("GN", 256)
    assert (module.num_groups, module.num_channels, module.eps) == (32, 256, 1e-5)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize(("norm", "members"), [("GN", gn_set(8, 4)), ("LN", ln_set(8)), ("IN", in_set(8))])
def test_norms_match_equations_on_one_pixel(norm, members, samples):
    assert_follows(make_norm(norm, 8, "MODEL.GN.NUM_GROUPS", 4), features(samples, 8, 1, 1), members)


@pytest.mark.parametrize("norm", ["GN", "LN", "IN"])
@pytest.mark.parametrize("training", [True, False])
def test_output_does_not_depend_on_the_batch(norm, training):
    module = make_norm(norm, 64).train(training)
    x = features(4, 64)
    other = torch.cat([x[:1], 100 * features(7, 64)])
    torch.testing.assert_close(module(x)[:1], module(x[:1]))
    torch.testing.assert_close(module(other)[:1], module(x[:1]))


def test_bn_depends_on_the_batch():
    module, x = make_norm("BN", 8).train(), features(4, 8)
    torch.testing.assert_close(module(x), equations(x, module.weight, module.bias, bn_set(8)))
    assert not torch.allclose(module(x)[:1], module(x[:1]), atol=0.1)


@pytest.mark.parametrize("norm", ["GN", "LN", "IN"])
@pytest.mark.parametrize("training", [True, False])
def test_norms_accept_zero_samples(norm, training):
    module, x = make_norm(norm, 64).train(training), features(0, 64, 7, 7)
    y = module(x)
    assert y.shape == (0, 64, 7, 7)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert not module.weight.grad.any()
    assert not module.bias.grad.any()


@pytest.mark.parametrize("key", NORM_KEYS)
def test_norm_layer_reads_only_its_key(key):
    cfg = get_cfg()
    for other in NORM_KEYS:
        cfg.merge_from_list([other, "GN" if other == key else "BN"])
    assert isinstance(norm_layer(cfg, key)(32), nn.GroupNorm)


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("BN", BatchNorm2d),
        ("SyncBN", nn.SyncBatchNorm),
        ("FrozenBN", FrozenBatchNorm2d),
        ("nnSyncBN", nn.SyncBatchNorm),
        ("naiveSyncBN", NaiveSyncBatchNorm),
        ("naiveSyncBN_N", NaiveSyncBatchNorm),
        ("GN", nn.GroupNorm),
        ("LN", nn.GroupNorm),
        ("IN", nn.GroupNorm),
    ],
)
def test_each_norm_has_its_class(norm, kind):
    module = norm_layer(make_cfg(norm), KEY)(64)
    assert isinstance(module, kind)
    if kind is NaiveSyncBatchNorm:
        assert module._stats_mode == ("N" if norm.endswith("_N") else "")


def test_norm_layer_of_no_norm_is_the_empty_string():
    assert norm_layer(make_cfg(""), KEY) == ""


@pytest.mark.parametrize(
    ("device", "processes", "kind"),
    [("cpu", 1, nn.SyncBatchNorm), ("cpu", 2, NaiveSyncBatchNorm), ("cuda", 2, nn.SyncBatchNorm)],
)
def test_syncbn_on_several_cpu_processes_is_naive_syncbn(monkeypatch, device, processes, kind):
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    assert type(norm_layer(make_cfg("SyncBN", "MODEL.DEVICE", device), KEY)(8)) is kind


@pytest.mark.parametrize(("wrong", "meant"), [("gn", "GN"), ("SynchBN", "SyncBN"), ("frozen_bn", "FrozenBN")])
def test_error_for_unknown_norm_names_a_similar_one(wrong, meant):
    with pytest.raises(GNDetError, match=f"{KEY} is '{wrong}'.*did you mean '{meant}'"):
        norm_layer(make_cfg(wrong), KEY)


def test_error_for_unknown_norm_lists_all_if_none_is_similar():
    with pytest.raises(GNDetError, match="'Weightless'.*use one of 'GN', 'LN', 'IN', 'BN'"):
        check_norm(make_cfg("Weightless"), KEY)


@pytest.mark.parametrize(("groups", "per_group"), [(32, 16), (-1, -1), (0, 0), (0, -1)])
def test_exactly_one_group_key_must_be_set(groups, per_group):
    cfg = make_cfg("GN", "MODEL.GN.NUM_GROUPS", groups, "MODEL.GN.CHANNELS_PER_GROUP", per_group)
    message = f"NUM_GROUPS is {groups} and MODEL.GN.CHANNELS_PER_GROUP is {per_group}: exactly one"
    with pytest.raises(GNDetError, match=message):
        norm_layer(cfg, KEY)


@pytest.mark.parametrize("norm", ["LN", "IN", "BN", ""])
def test_group_keys_do_not_affect_other_norms(norm):
    check_norm(make_cfg(norm, "MODEL.GN.NUM_GROUPS", 32, "MODEL.GN.CHANNELS_PER_GROUP", 16), KEY)


@pytest.mark.parametrize("eps", [0.0, -1e-5])
def test_eps_must_be_above_0(eps):
    with pytest.raises(GNDetError, match=r"MODEL.GN.EPS is .* must be above 0"):
        norm_layer(make_cfg("GN", "MODEL.GN.EPS", eps), KEY)


@pytest.mark.parametrize(
    ("opts", "key", "value", "channels"),
    [
        (["MODEL.GN.NUM_GROUPS", 32], "NUM_GROUPS", 32, 48),
        (["MODEL.GN.NUM_GROUPS", 7], "NUM_GROUPS", 7, 48),
        (["MODEL.GN.NUM_GROUPS", 64], "NUM_GROUPS", 64, 48),
        (["MODEL.GN.NUM_GROUPS", -1, "MODEL.GN.CHANNELS_PER_GROUP", 10], "CHANNELS_PER_GROUP", 10, 48),
        (["MODEL.GN.NUM_GROUPS", -1, "MODEL.GN.CHANNELS_PER_GROUP", 64], "CHANNELS_PER_GROUP", 64, 48),
    ],
)
def test_check_groups_names_the_nearest_divisors(opts, key, value, channels):
    """For one layer, the error names the nearest divisors below and above, and both can be built."""
    cfg = make_cfg("GN", *opts)
    assert num_groups(cfg.MODEL.GN, "GN", channels) is None
    model = nn.ModuleDict({"conv1": nn.ModuleDict({"norm": norm_layer(cfg, KEY)(channels)})})
    with pytest.raises(GNDetError) as error:
        check_groups(model, "roi_heads.box_head")
    divisors = [d for d in range(1, channels + 1) if channels % d == 0]
    nearest = [d for d in divisors if d < value][-1:] + [d for d in divisors if d > value][:1]
    expected = (
        f"roi_heads.box_head.conv1 has {channels} channels, which MODEL.GN.{key} {value} does not divide "
        f"({KEY} is GN): set MODEL.GN.{key} to {' or '.join(map(str, nearest))}."
    )
    assert str(error.value) == expected
    for divisor in nearest:
        cfg.MODEL.GN[key] = divisor
        module = norm_layer(cfg, KEY)(channels)
        check_groups(module, "x")
        assert module(torch.randn(2, channels, 3, 3)).isfinite().all()


def test_proposed_number_of_groups_suits_all_layers():
    """24 and 48 divide 96 channels, but not the 64 channels of the other layer."""
    make = norm_layer(make_cfg("GN", "MODEL.GN.NUM_GROUPS", 64), KEY)
    with pytest.raises(GNDetError, match=r"m\.1 has 96 channels.*set MODEL\.GN\.NUM_GROUPS to 32\."):
        check_groups(nn.Sequential(make(64), make(96)), "m")


def test_proposed_channels_per_group_suit_all_layers():
    """48 and 96 divide 96 channels, but not the 64 channels of the other layer."""
    opts = ["MODEL.GN.NUM_GROUPS", -1, "MODEL.GN.CHANNELS_PER_GROUP", 64]
    make = norm_layer(make_cfg("GN", *opts), KEY)
    with pytest.raises(GNDetError, match=r"set MODEL\.GN\.CHANNELS_PER_GROUP to 32\."):
        check_groups(nn.Sequential(make(64), make(96)), "m")


def test_layers_of_other_norms_do_not_affect_the_proposed_values():
    """IN always has one channel per group, so the values need not divide its 25 channels."""
    cfg = make_cfg("GN", "MODEL.GN.NUM_GROUPS", 32, "MODEL.FPN.NORM", "IN")
    layers = nn.Sequential(norm_layer(cfg, "MODEL.FPN.NORM")(25), norm_layer(cfg, KEY)(48))
    with pytest.raises(GNDetError, match="set MODEL.GN.NUM_GROUPS to 24 or 48"):
        check_groups(layers, "m")


def test_check_groups_counts_further_layers():
    make = norm_layer(make_cfg("GN"), KEY)
    with pytest.raises(GNDetError, match=r"m\.0 \(and 2 more\) has 40 channels.*set MODEL\.GN\.NUM_GROUPS to 8\."):
        check_groups(nn.Sequential(make(40), make(48), make(64), make(8)), "m")


def test_check_groups_accepts_divisible_channels():
    make = norm_layer(make_cfg("GN"), KEY)
    check_groups(nn.Sequential(make(64), make(256)), "m")


def test_with_norms_does_not_change_the_config():
    cfg = make_cfg("LN")
    before = cfg.dump()
    cfg.freeze()
    copy = with_norms(cfg)
    assert cfg.dump() == before
    assert get_key(copy, KEY)(12).num_groups == 1
    again = with_norms(copy)  # a part may get the config from another part
    assert get_key(again, KEY) is get_key(copy, KEY)


class FusedGroupNorm(nn.Module):
    """A norm of another library, whose class is unknown to torch and detectron2."""

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.inner = nn.Conv2d(channels, channels, 1)


def test_is_norm_by_class_name():
    norms = [nn.GroupNorm(1, 4), nn.BatchNorm2d(4), nn.SyncBatchNorm(4), FrozenBatchNorm2d(4), nn.InstanceNorm2d(4)]
    norms += [Detectron2LayerNorm(4), nn.RMSNorm(4), FusedGroupNorm(4)]
    assert all(map(is_norm, norms))
    assert not any(map(is_norm, [nn.Conv2d(4, 4, 1), nn.Linear(4, 4), nn.ReLU(), nn.Sequential(), nn.Dropout()]))


def test_norm_parameters_are_only_scales_and_shifts():
    fused, gn = FusedGroupNorm(4), nn.GroupNorm(2, 4)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), gn, fused, FrozenBatchNorm2d(4))
    assert norm_parameters(model) == {gn.weight, gn.bias, fused.gamma}


def test_zero_init_residual_does_not_change_other_modules():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4))
    zero_init_residual(model)
    assert bool((model[1].weight == 1).all())
