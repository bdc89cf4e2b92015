"""Optimizer: no weight decay on norms, and Detectron's learning rates and weight decay of biases."""

from collections import Counter

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers.batch_norm import LayerNorm as Detectron2LayerNorm
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.solver import build_optimizer as detectron2_build_optimizer
from torch import nn

from gn_det.config.defaults import get_cfg
from gn_det.config.files import config_dir
from gn_det.modeling.norm import norm_layer
from gn_det.training.solver import build_optimizer

LR, DECAY = 0.02, 1e-4


class FusedGroupNorm(nn.Module):
    """GN and ReLU as one operation: a class that detectron2 does not know."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return nn.functional.group_norm(x, 2, self.weight, self.bias).relu()


def named_norm(name: str):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.RESNETS.NORM", name, "MODEL.GN.NUM_GROUPS", 2, "MODEL.DEVICE", "cpu"])
    return norm_layer(cfg, "MODEL.RESNETS.NORM")


NORMS = {name: named_norm(name) for name in ("GN", "LN", "IN", "BN", "SyncBN")}
FOREIGN = {"detectron2's LayerNorm": Detectron2LayerNorm, "FusedGroupNorm": FusedGroupNorm}
ALL = {**NORMS, **FOREIGN}


def make_cfg(*opts) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.BASE_LR", LR, "SOLVER.WEIGHT_DECAY", DECAY, "SOLVER.WEIGHT_DECAY_NORM", 0.0, *opts])
    return cfg


def recipe(*opts) -> CfgNode:
    """Return the shipped config of Detectron's recipe."""
    cfg = get_cfg()
    cfg.merge_from_file(str(config_dir() / "Base-Detectron.yaml"), allow_unsafe=False)
    cfg.merge_from_list(["SOLVER.BASE_LR", LR, *opts])
    return cfg


def make_model(norm) -> nn.ModuleDict:
    layers = {"conv": nn.Conv2d(3, 8, 3, bias=False), "norm": norm(8), "last": nn.Conv2d(8, 4, 1)}
    return nn.ModuleDict(layers)


def settings(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, tuple[float, float]]:
    """Return (learning rate, weight decay) by parameter name, and check that no parameter is in two groups."""
    names = {p: name for name, p in model.named_parameters()}
    found = [(names[p], g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]]
    assert max(Counter(name for name, *_ in found).values()) == 1
    return {name: (pytest.approx(lr), decay) for name, lr, decay in found}


@pytest.mark.parametrize("norm", FOREIGN)
def test_stock_optimizer_decays_norms_that_it_does_not_know(norm):
    """The reason for gn_det's own build_optimizer."""
    model = make_model(FOREIGN[norm])
    found = settings(detectron2_build_optimizer(make_cfg(), model), model)
    assert found["norm.weight"] == found["norm.bias"] == (LR, DECAY)


def test_stock_optimizer_decays_shifts_of_norms_if_weight_decay_bias_is_set():
    model = make_model(NORMS["GN"])
    found = settings(detectron2_build_optimizer(make_cfg("SOLVER.WEIGHT_DECAY_BIAS", 5e-5), model), model)
    assert found["norm.weight"] == (LR, 0)
    assert found["norm.bias"] == (LR, 5e-5)


@pytest.mark.parametrize("norm", ALL)
def test_no_norm_decays(norm):
    model = make_model(ALL[norm])
    assert settings(build_optimizer(make_cfg(), model), model) == {
        "conv.weight": (LR, DECAY),
        "norm.weight": (LR, 0),
        "norm.bias": (LR, 0),
        "last.weight": (LR, DECAY),
        "last.bias": (LR, DECAY),
    }


@pytest.mark.parametrize("norm", ALL)
def test_no_norm_decays_if_weight_decay_bias_is_set(norm):
    model = make_model(ALL[norm])
    assert settings(build_optimizer(make_cfg("SOLVER.WEIGHT_DECAY_BIAS", 5e-5), model), model) == {
        "conv.weight": (LR, DECAY),
        "norm.weight": (LR, 0),
        "norm.bias": (LR, 0),
        "last.weight": (LR, DECAY),
        "last.bias": (LR, 5e-5),
    }


@pytest.mark.parametrize("norm", ALL)
def test_recipe_of_detectron(norm):
    model = make_model(ALL[norm])
    assert settings(build_optimizer(recipe(), model), model) == {
        "conv.weight": (LR, DECAY),
        "norm.weight": (LR, 0),
        "norm.bias": (2 * LR, 0),
        "last.weight": (LR, DECAY),
        "last.bias": (2 * LR, 0),
    }


@pytest.mark.parametrize("norm", ALL)
def test_weight_decay_norm_is_applied_to_norms(norm):
    model = make_model(ALL[norm])
    found = settings(build_optimizer(recipe("SOLVER.WEIGHT_DECAY_NORM", 3e-5), model), model)
    assert (found["norm.weight"], found["norm.bias"]) == ((LR, 3e-5), (2 * LR, 3e-5))
    assert (found["conv.weight"], found["last.bias"]) == ((LR, DECAY), (2 * LR, 0))


@pytest.mark.parametrize("norm", ["GN", "FusedGroupNorm"])
def test_frozen_parameters_are_left_out(norm):
    model = make_model(ALL[norm])
    model["conv"].weight.requires_grad = False
    model["norm"].bias.requires_grad = False
    found = settings(build_optimizer(recipe(), model), model)
    assert set(found) == {"norm.weight", "last.weight", "last.bias"}


def test_frozen_bn_has_no_trained_parameters():
    model = make_model(named_norm("FrozenBN"))
    assert set(settings(build_optimizer(recipe(), model), model)) == {"conv.weight", "last.weight", "last.bias"}


def test_shared_norms_are_in_one_group():
    model = make_model(FusedGroupNorm)
    model["again"] = model["norm"]
    assert len(settings(build_optimizer(make_cfg(), model), model)) == 5


@pytest.mark.parametrize("kind", ["value", "norm"])
def test_gradient_clipping_still_works(kind):
    opts = ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", kind]
    model = make_model(FusedGroupNorm)
    optimizer = build_optimizer(make_cfg(*opts, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1e-3), model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e3)
    optimizer.step()
    for name, p in model.named_parameters():
        moved = (p - before[name]).abs().max()
        assert 0 < moved < LR * 2e-3, name


@pytest.mark.parametrize("norm", ALL)
def test_step_with_zero_gradients_changes_only_decayed_weights(norm):
    """Checks the effect of weight decay, not the settings of the optimizer."""
    model = make_model(ALL[norm])
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1)
            p.grad = torch.zeros_like(p)
    build_optimizer(recipe(), model).step()
    for name, p in model.named_parameters():
        value = 1 - LR * DECAY if name in ("conv.weight", "last.weight") else 1
        torch.testing.assert_close(p.detach(), torch.full_like(p, value), rtol=0, atol=1e-8)


def test_norms_decay_like_other_parameters_if_weight_decay_norm_is_none():
    """detectron2 allows SOLVER.WEIGHT_DECAY_NORM None too."""
    model = make_model(NORMS["GN"])
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer = build_optimizer(make_cfg("SOLVER.WEIGHT_DECAY_NORM", None), model)
    assert all(got == (LR, DECAY) for got in settings(optimizer, model).values())
    optimizer.step()


def test_schedule_scales_the_learning_rates_of_all_groups():
    model = make_model(FusedGroupNorm)
    cfg = recipe("SOLVER.STEPS", (1,), "SOLVER.MAX_ITER", 2, "SOLVER.WARMUP_ITERS", 0)
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    scheduler.step()
    found = settings(optimizer, model)
    assert (found["norm.weight"], found["norm.bias"]) == ((LR / 10, 0), (LR / 5, 0))
    assert found["conv.weight"] == (LR / 10, DECAY)


def test_parameters_of_a_whole_model_get_the_settings_of_their_kind(tiny_cfg):
    """Each trained parameter of the shipped GN model is in exactly one group."""
    cfg = tiny_cfg("mask_rcnn_R50_FPN_gn", "MODEL.DEVICE", "meta", "MODEL.BACKBONE.FREEZE_AT", 2)
    with torch.device("meta"):
        model = build_model(cfg)
    found = settings(build_optimizer(cfg, model), model)
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("backbone.bottom_up.stem", "backbone.bottom_up.res2")) for name in found)
    kinds = Counter()
    for name, got in found.items():
        kind = "shift" if name.endswith("norm.bias") else "scale" if ".norm." in name else name.rsplit(".", 1)[1]
        lr, decay = {"shift": (2, 0), "scale": (1, 0), "bias": (2, 0), "weight": (1, DECAY)}[kind]
        assert got == (lr * LR, decay), name
        kinds[kind] += 1
    assert kinds["scale"] == kinds["shift"] == 42 + 8 + 8
