"""Training options: outputs, gradients, module types and state-dict keys do not change."""

import copy
import functools

import pytest
import torch
from detectron2.layers import ROIAlign
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from gn_det import GNDetError
from gn_det.acceleration.training import (
    apply_training_options,
    checkpoint_activations,
    compile_backbone,
    keep_rois_in_float32,
    to_channels_last,
)
from gn_det.config.files import load_config
from gn_det.cost.memory import training_memory
from gn_det.cost.parts import RCNNParts
from helpers.paths import REPO

R18 = "quickstart_R18_FPN_gn_scratch"


@pytest.fixture
def make(tiny_cfg):
    """Return a function that builds a small R18-FPN Mask R-CNN in training mode from config overrides."""
    return lambda *opts: build_model(tiny_cfg(R18, *opts)).train()


def run(model: nn.Module, images: list[dict], dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Return the losses and the gradient of each trained parameter."""
    torch.manual_seed(1)  # for the sampling of anchors and proposals
    model.zero_grad()
    with EventStorage(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        losses = model(images)
    sum(losses.values()).backward()
    return losses | {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Return the largest relative difference of two tensors with the same key."""
    assert a.keys() == b.keys() and len(a) > 50
    return max(((a[key] - b[key]).norm() / a[key].norm().clamp(min=1e-9)).item() for key in a)


def count_calls(model: nn.Module, *names: str) -> dict[str, int]:
    """Return a dict that counts the calls of each module from now on."""
    count = dict.fromkeys(names, 0)
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda *_, n=name: count.update({n: count[n] + 1}))
    return count


@pytest.mark.parametrize(("freeze_at", "dtype"), [(0, None), (2, None), (0, torch.bfloat16)])
def test_checkpoint_activations_keeps_gradients(make, batch, freeze_at, dtype):
    model, images = make("MODEL.BACKBONE.FREEZE_AT", freeze_at), batch(2, 1, classes=3)
    before, types = run(model, images, dtype), {name: type(module) for name, module in model.named_modules()}
    names = list(model.state_dict())
    checkpoint_activations(model)
    stem, res2, res5 = layers = [f"backbone.bottom_up.{name}.conv1" for name in ("stem", "res2.0", "res5.1")]
    count = count_calls(model, *layers)
    assert difference(before, run(model, images, dtype)) == 0
    assert count == {stem: 1 if freeze_at else 2, res2: 1 if freeze_at else 2, res5: 2}
    with torch.no_grad():
        model.eval()(images)
    assert count[res5] == 3
    assert types == {name: type(module) for name, module in model.named_modules()} and names == list(model.state_dict())


def test_channels_last_keeps_gradients(make, batch):
    model, images = make(), batch(2, 1, classes=3)
    before, names = run(model, images), list(model.state_dict())
    to_channels_last(model)
    seen = {}
    model.backbone.bottom_up.res3.register_forward_hook(lambda _, args, out: seen.update(input=args[0], output=out))
    model.backbone.bottom_up.stem.register_forward_hook(lambda _, args, out: seen.update(image=args[0]))
    assert difference(before, run(model, images)) < 1e-4
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen.values()) and len(seen) == 3
    assert model.roi_heads.box_head.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert names == list(model.state_dict())


def test_copies_use_their_own_weights(tiny_cfg, make, batch):
    """The average of the weights is such a copy."""
    options = ["TRAIN.CHECKPOINT_ACTIVATIONS", "TRAIN.CHANNELS_LAST", "SOLVER.AMP.ENABLED"]
    plain, images = make(), batch(2, classes=3)
    changed = copy.deepcopy(plain)
    apply_training_options(tiny_cfg(R18, *[word for option in options for word in (option, True)]), changed)
    other = copy.deepcopy(changed)
    with torch.no_grad():
        for model in (plain, other):
            model.backbone.bottom_up.res2[0].conv1.weight.mul_(-1)
    expected = run(plain, images)
    assert difference(expected, run(other, images)) < 1e-4 < difference(expected, run(changed, images))


@pytest.mark.parametrize("exact", [True, False])
def test_rois_keep_float32_coordinates(exact):
    """On a ramp, RoIAlign returns the center of the RoI: 1005.5 pixels, but 1004 with rounded corners."""
    pooler = nn.Sequential(ROIAlign((1, 1), 1 / 8, 2))
    if exact:
        keep_rois_in_float32(pooler)
    ramp = (torch.arange(163.0) - 124).expand(1, 1, 8, 163)  # small numbers, which bfloat16 represents exactly
    rois = torch.tensor([[0, 1001.3, 8, 1009.7, 24]])
    with torch.autocast("cpu", torch.bfloat16):
        (out,) = pooler[0](ramp.bfloat16(), rois).flatten()
    assert out.dtype == torch.bfloat16 and out.item() == ((1005.5 if exact else 1004) / 8 - 0.5 - 124)
    assert pooler[0](ramp, rois).item() == pytest.approx(1005.5 / 8 - 0.5 - 124, abs=1e-4)


def test_amp_keeps_rois_in_float32(tiny_cfg, make):
    model = make()
    apply_training_options(tiny_cfg(R18, "SOLVER.AMP.ENABLED", True), model)
    assert all("forward" in vars(m) for m in model.modules() if isinstance(m, ROIAlign))
    plain = make()
    apply_training_options(tiny_cfg(R18), plain)
    assert not any("forward" in vars(m) for m in plain.modules())


@pytest.mark.slow
def test_compile_keeps_state_dict_keys_and_gradients(tiny_cfg, make, batch, monkeypatch):
    """The backend is "eager", because code generation takes minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    model, images = make(), batch(2, 1, classes=3)
    before, names, kind = run(model, images), list(model.state_dict()), type(model.backbone)
    apply_training_options(tiny_cfg(R18, "TRAIN.COMPILE", True, "TRAIN.CHECKPOINT_ACTIVATIONS", True), model)
    torch._dynamo.reset()
    frames = torch._dynamo.utils.counters["frames"]
    assert difference(before, run(model, images)) < 1e-4 and frames["ok"] >= 1
    assert names == list(model.state_dict()) and kind is type(model.backbone)
    assert difference(before, run(copy.deepcopy(model), images)) < 1e-4


def test_missing_compiler_is_reported_in_one_line(make, monkeypatch):
    def fails(function):
        def call(x):
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found.\nSet TORCH_LOGS for more")

        return call

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(
        GNDetError, match=r"torch.compile does not work here \(InvalidCxx.* found\): install a C\+\+ compiler"
    ) as error:
        compile_backbone(make())
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_memory_peaks_in_the_docs_match_measurement():
    page = (REPO / "docs" / "training.md").read_text()
    text = " ".join(page.split())
    for name in ("R50_FPN_gn", "R50_FPN_gn_scratch", "R50_C4_gn"):
        with torch.device("meta"):
            model = build_model(load_config(f"mask_rcnn_{name}", ["MODEL.DEVICE", "meta"]))
        peaks = []
        for recompute in (False, True):
            if recompute:
                checkpoint_activations(model)
            step = training_memory(RCNNParts(model, 512, 128), (2, 3, 800, 1344))
            peaks.append(f"{step['peak'] / 2**30:.2f}")
        assert " -> ".join(peaks) in text
