"""Fused models compared with unfused ones: outputs, gradients, and code that inspects modules."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from detectron2.utils.analysis import FlopCountAnalysis
from detectron2.utils.events import EventStorage
from torch import nn

from gn_det.acceleration.fuse import FusedBottleneckBlock, FusedConv2d, fuse
from gn_det.cost.memory import training_memory
from gn_det.cost.parts import RCNNParts
from gn_det.modeling.norm import norm_name
from gn_det.ops import FusedGroupNorm, native
from gn_det.training.solver import build_optimizer

BLOCKS = {
    "stem": lambda: BasicStem(in_channels=8, out_channels=32, norm="GN"),
    "basic": lambda: BasicBlock(8, 32, stride=2, norm="GN"),
    "basic without shortcut": lambda: BasicBlock(32, 32, norm="GN"),
    "bottleneck": lambda: BottleneckBlock(8, 64, bottleneck_channels=32, stride=2, norm="GN"),
    "bottleneck without shortcut": lambda: BottleneckBlock(64, 64, bottleneck_channels=32, norm="GN"),
    "head": lambda: Conv2d(8, 32, 3, norm=nn.GroupNorm(32, 32), activation=nn.ReLU()),
    "functional": lambda: Conv2d(8, 32, 3, norm=nn.GroupNorm(4, 32), activation=F.relu_),
    "lateral": lambda: Conv2d(8, 32, 1, norm=nn.GroupNorm(4, 32)),
}


def perturb(module: nn.Module) -> None:
    """Change scales from 1 and shifts from 0."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))


def pair(name: str) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """Return a block, a fused copy of it, and an input."""
    block = BLOCKS[name]()
    perturb(block)
    fused = copy.deepcopy(block)
    assert fuse(fused) == sum(isinstance(m, nn.GroupNorm) for m in block.modules())
    x = torch.randn(2, next(m for m in block.modules() if isinstance(m, nn.Conv2d)).in_channels, 12, 16)
    return block, fused, x


@pytest.fixture
def calls(monkeypatch) -> list[tuple[bool, bool]]:
    """Return a list that collects (with a residual, with a ReLU) for each call of the operation."""
    recorded = []
    forward = native.forward

    def record(*args):
        recorded.append((args[1] is not None, args[6]))
        return forward(*args)

    monkeypatch.setattr(native, "forward", record)
    return recorded


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_fused_block_matches_unfused_in_fewer_operations(name, last, calls):
    block, fused, x = pair(name)
    x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format).requires_grad_()
    results = []
    for module in (block, fused):
        y = module(x)
        dy = torch.linspace(-1, 2, y.numel()).view_as(y)
        results.append([y, *torch.autograd.grad(y, [x, *module.parameters()], dy)])
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
    expected_relus = {"stem": 1, "head": 1, "functional": 1, "lateral": 0}.get(name, 2 if "basic" in name else 3)
    assert sum(relu for _, relu in calls) == expected_relus
    assert sum(residual for residual, _ in calls) == int(name.startswith("b"))
    kinds = {type(node).__name__ for node in _autograd_nodes(results[1][0].grad_fn)}
    assert "_GroupNormBackward" in kinds and not kinds & {"ReluBackward0", "AddBackward0"}


def _autograd_nodes(node) -> set:
    found, new = set(), [node]
    while new:
        node = new.pop()
        if node is not None and node not in found:
            found.add(node)
            new += [following for following, _ in node.next_functions]
    return found


@pytest.mark.parametrize("name", BLOCKS)
def test_fused_block_keeps_memory_format_and_dtype(name):
    _, fused, x = pair(name)
    with torch.autocast("cpu", torch.bfloat16):
        y = fused(x.contiguous(memory_format=torch.channels_last))
    assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
@pytest.mark.parametrize("name", ["stem", "basic", "bottleneck", "head"])
def test_fused_block_can_be_copied_traced_and_scripted(name):
    block, fused, x = pair(name)
    want = block(x)
    for other in (
        copy.deepcopy(fused),
        pickle.loads(pickle.dumps(fused)),
        torch.jit.trace(fused, x),
        torch.jit.script(fused),
    ):
        torch.testing.assert_close(other(x), want)


def test_fused_block_can_be_compiled():
    block, fused, x = pair("bottleneck")
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x))


def losses_and_gradients(model: nn.Module, batch: list[dict]) -> tuple[dict, dict]:
    torch.manual_seed(1)
    model.train().zero_grad()
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(("config", "freeze_at"), [("quickstart_R18_FPN_gn_scratch", 0), ("mask_rcnn_R50_FPN_gn", 2)])
def test_fused_model_matches_unfused(config, freeze_at, tiny_cfg, batch, calls):
    model = build_model(tiny_cfg(config, "MODEL.BACKBONE.FREEZE_AT", freeze_at))
    perturb(model)
    fused = copy.deepcopy(model)
    norms = sum(isinstance(m, nn.GroupNorm) for m in model.modules())
    assert fuse(fused) == norms > 30 and fuse(fused) == 0
    assert list(fused.state_dict()) == list(model.state_dict())
    images = batch(2, height=64, width=96)

    (losses, gradients), (fused_losses, fused_gradients) = (losses_and_gradients(m, images) for m in (model, fused))
    assert len(calls) == norms
    assert sum(residual for residual, _ in calls) == {18: 8, 50: 16}[18 if "R18" in config else 50]
    for name, loss in losses.items():
        torch.testing.assert_close(fused_losses[name], loss, rtol=1e-5, atol=1e-7)
    for name, gradient in gradients.items():
        assert (gradient is None) == (fused_gradients[name] is None) == (freeze_at > 0 and _frozen(name)), name
        if gradient is not None:
            assert (fused_gradients[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name

    with torch.no_grad():
        want, got = (m.eval().backbone(torch.randn(1, 3, 64, 64, generator=_seed())) for m in (model, fused))
    for name in want:
        assert (got[name] - want[name]).norm() <= 1e-5 * want[name].norm(), name


def _frozen(name: str) -> bool:
    return name.startswith(("backbone.bottom_up.stem", "backbone.bottom_up.res2"))


def _seed() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def test_inspection_of_modules_gives_the_same_results(tiny_cfg):
    cfg = tiny_cfg("quickstart_R18_FPN_gn_scratch", "MODEL.FPN.NORM", "LN", "MODEL.ROI_MASK_HEAD.NORM", "IN")
    model = build_model(cfg)
    fused = copy.deepcopy(model)
    fuse(fused)
    modules = dict(fused.named_modules())
    for name, a in model.named_modules():
        if name not in modules:  # the norm contains it now
            assert name.endswith(".activation")
        elif isinstance(a, nn.GroupNorm):
            assert isinstance(modules[name], nn.GroupNorm) and norm_name(modules[name]) == norm_name(a), name
        else:
            assert isinstance(modules[name], type(a)), name
    decays = [
        [(g["weight_decay"], len(g["params"])) for g in build_optimizer(cfg, m).param_groups] for m in (model, fused)
    ]
    assert decays[0] == decays[1]
    flops, memory = [], []
    for each in (model, fused):
        counted = FlopCountAnalysis(RCNNParts(each, 1, 1).eval(), torch.zeros(1, 3, 64, 64))
        counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        flops.append((counted.by_operator(), counted.unsupported_ops()))
        memory.append(training_memory(RCNNParts(each.to("meta"), 4, 2), (1, 3, 64, 64))["kept"].total())
    assert flops[0] == flops[1] and flops[0][0]["group_norm"]
    assert memory[1] <= memory[0]


def test_block_with_bn_is_unchanged():
    block = BottleneckBlock(8, 64, bottleneck_channels=32, norm="BN")
    assert fuse(block) == 0 and type(block) is BottleneckBlock


@pytest.mark.parametrize(("changed", "norms"), [({"norm": nn.BatchNorm2d(32)}, 2), ({"activation": nn.GELU()}, 3)])
def test_modified_block_is_not_fused(changed, norms):
    block = BottleneckBlock(64, 64, bottleneck_channels=32, norm="GN")
    for name, module in changed.items():
        setattr(block.conv2, name, module)
    want, x = copy.deepcopy(block), torch.randn(2, 64, 5, 5)
    assert fuse(block) == norms and type(block) is BottleneckBlock
    torch.testing.assert_close(block(x), want(x))


class CustomBlock(BottleneckBlock):
    def forward(self, x):
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class CustomNorm(nn.GroupNorm):
    def forward(self, x):
        return 2 * super().forward(x)


def test_custom_classes_are_not_fused():
    """Only their nn.GroupNorm layers become FusedGroupNorm, without ReLU or residual."""
    block = CustomBlock(64, 64, bottleneck_channels=32, norm="GN")
    custom_norm = Conv2d(8, 32, 1, norm=CustomNorm(4, 32), activation=F.relu)
    gelu = Conv2d(8, 32, 1, norm=nn.GroupNorm(4, 32), activation=nn.GELU())
    for module, changed in ((block, 3), (custom_norm, 0), (gelu, 1)):
        want, x = copy.deepcopy(module), torch.randn(2, module.in_channels, 5, 5)
        assert fuse(module) == changed and type(module) is type(want)
        torch.testing.assert_close(module(x), want(x))
    assert gelu.activation is not None and isinstance(gelu.norm, FusedGroupNorm)


def test_norm_shared_by_two_convolutions_is_not_fused():
    norm = nn.GroupNorm(4, 32)
    both = nn.Sequential(Conv2d(8, 32, 1, norm=norm, activation=nn.ReLU()), Conv2d(32, 32, 1, norm=norm))
    want, x = copy.deepcopy(both), torch.randn(2, 8, 5, 5)
    assert fuse(both) == 1
    torch.testing.assert_close(both(x), want(x))
    assert (both(x) < 0).any()


def test_forward_hooks_still_run():
    _, fused, x = pair("bottleneck")
    assert type(fused) is FusedBottleneckBlock and type(fused.conv3) is FusedConv2d
    seen = []
    for name in ("conv1", "conv3.norm", "shortcut"):
        fused.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    fused(x)
    assert seen == ["conv1", "shortcut", "conv3.norm"]
