"""How a model is run changes neither what it computes, nor its types, nor its names."""

import copy
import functools

import pytest
import torch
from detectron2.layers import ROIAlign
from detectron2.utils.events import EventStorage
from torch import nn

from gn_det import GNDetError
from gn_det.acceleration.training import (
    apply_switches,
    checkpoint_activations,
    compile_backbone,
    keep_rois_exact,
    to_channels_last,
)
from gn_det.config.files import load_config
from gn_det.cost.memory import training_step
from gn_det.cost.parts import RCNNParts
from gn_det.training.trainer import build_model
from helpers.paths import REPO

R18 = "quickstart_R18_FPN_gn_scratch"


@pytest.fixture
def make(tiny_cfg):
    """(overrides) -> a small R18-FPN Mask R-CNN in training."""
    return lambda *opts: build_model(tiny_cfg(R18, *opts)).train()


def run(model: nn.Module, images: list[dict], dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """The losses, and the gradient of each trained parameter."""
    torch.manual_seed(1)  # of the sampling of anchors and proposals
    model.zero_grad()
    with EventStorage(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        losses = model(images)
    sum(losses.values()).backward()
    return losses | {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest, as a share of the tensor that it is in."""
    assert a.keys() == b.keys() and len(a) > 50
    return max(((a[key] - b[key]).norm() / a[key].norm().clamp(min=1e-9)).item() for key in a)


def calls(model: nn.Module, *names: str) -> dict[str, int]:
    """How often each module will have run."""
    count = dict.fromkeys(names, 0)
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda *_, n=name: count.update({n: count[n] + 1}))
    return count


@pytest.mark.parametrize("freeze_at,dtype", [(0, None), (2, None), (0, torch.bfloat16)])
def test_recomputed_activations_give_the_same_gradients(make, batch, freeze_at, dtype):
    model, images = make("MODEL.BACKBONE.FREEZE_AT", freeze_at), batch(2, 1, classes=3)
    before, types = run(model, images, dtype), {name: type(module) for name, module in model.named_modules()}
    names = list(model.state_dict())
    checkpoint_activations(model)
    stem, res2, res5 = layers = [f"backbone.bottom_up.{name}.conv1" for name in ("stem", "res2.0", "res5.1")]
    count = calls(model, *layers)
    assert difference(before, run(model, images, dtype)) == 0
    assert count == {stem: 1 if freeze_at else 2, res2: 1 if freeze_at else 2, res5: 2}
    with torch.no_grad():
        model.eval()(images)
    assert count[res5] == 3
    assert types == {name: type(module) for name, module in model.named_modules()} and names == list(model.state_dict())


def test_channels_last_computes_the_same(make, batch):
    model, images = make(), batch(2, 1, classes=3)
    before, names = run(model, images), list(model.state_dict())
    to_channels_last(model)
    seen = {}
    model.backbone.bottom_up.res3.register_forward_hook(lambda _, args, out: seen.update(given=args[0], out=out))
    model.backbone.bottom_up.stem.register_forward_hook(lambda _, args, out: seen.update(image=args[0]))
    assert difference(before, run(model, images)) < 1e-4
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen.values()) and len(seen) == 3
    assert model.roi_heads.box_head.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert names == list(model.state_dict())


def test_copies_run_with_their_own_weights(tiny_cfg, make, batch):
    """As the average of the weights is one."""
    switches = ["TRAIN.CHECKPOINT_ACTIVATIONS", "TRAIN.CHANNELS_LAST", "SOLVER.AMP.ENABLED"]
    plain, images = make(), batch(2, classes=3)
    switched = copy.deepcopy(plain)
    apply_switches(tiny_cfg(R18, *[word for switch in switches for word in (switch, True)]), switched)
    other = copy.deepcopy(switched)
    with torch.no_grad():
        for model in (plain, other):
            model.backbone.bottom_up.res2[0].conv1.weight.mul_(-1)
    expected = run(plain, images)
    assert difference(expected, run(other, images)) < 1e-4 < difference(expected, run(switched, images))


@pytest.mark.parametrize("exact", [True, False])
def test_rois_keep_their_corners_in_bfloat16(exact):
    """On features that are a ramp, RoIAlign gives the RoI's centre: here 1005.5 pixels, and of rounded corners 1004."""
    pooler = nn.Sequential(ROIAlign((1, 1), 1 / 8, 2))
    if exact:
        keep_rois_exact(pooler)
    ramp = (torch.arange(163.0) - 124).expand(1, 1, 8, 163)  # small numbers, which bfloat16 has exactly
    rois = torch.tensor([[0, 1001.3, 8, 1009.7, 24]])
    with torch.autocast("cpu", torch.bfloat16):
        (out,) = pooler[0](ramp.bfloat16(), rois).flatten()
    assert out.dtype == torch.bfloat16 and out.item() == ((1005.5 if exact else 1004) / 8 - 0.5 - 124)
    assert pooler[0](ramp, rois).item() == pytest.approx(1005.5 / 8 - 0.5 - 124, abs=1e-4)


def test_amp_keeps_rois_exact(tiny_cfg, make):
    model = make()
    apply_switches(tiny_cfg(R18, "SOLVER.AMP.ENABLED", True), model)
    assert all("forward" in vars(m) for m in model.modules() if isinstance(m, ROIAlign))
    plain = make()
    apply_switches(tiny_cfg(R18), plain)
    assert not any("forward" in vars(m) for m in plain.modules())


@pytest.mark.slow
def test_a_compiled_backbone_has_the_same_names_and_outputs(tiny_cfg, make, batch, monkeypatch):
    """Without the code generator, which takes minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    model, images = make(), batch(2, 1, classes=3)
    before, names, kind = run(model, images), list(model.state_dict()), type(model.backbone)
    apply_switches(tiny_cfg(R18, "TRAIN.COMPILE", True, "TRAIN.CHECKPOINT_ACTIVATIONS", True), model)
    torch._dynamo.reset()
    frames = torch._dynamo.utils.counters["frames"]
    assert difference(before, run(model, images)) < 1e-4 and frames["ok"] >= 1
    assert names == list(model.state_dict()) and kind is type(model.backbone)
    assert difference(before, run(copy.deepcopy(model), images)) < 1e-4


def test_no_compiler_is_one_sentence(make, monkeypatch):
    def fails(function):
        def call(x):
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found.\nSet TORCH_LOGS for more")

        return call

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(GNDetError, match=r"does not work here \(InvalidCxx.* found\): install a C") as error:
        compile_backbone(make())
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_peaks_in_the_docs_are_what_is_measured():
    page = (REPO / "docs" / "training.md").read_text()
    text = " ".join(page.split())
    for name in ("R50_FPN_gn", "R50_FPN_gn_scratch", "R50_C4_gn"):
        model = build_model(load_config(f"mask_rcnn_{name}", ["MODEL.DEVICE", "cpu"]))
        peaks = []
        for recompute in (False, True):
            if recompute:
                checkpoint_activations(model)
            step = training_step(RCNNParts(model.to("meta"), 512, 128), (2, 3, 800, 1344))
            peaks.append(f"{step['peak'] / 2**30:.2f}")
        assert " -> ".join(peaks) in text
