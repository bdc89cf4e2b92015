"""The Triton kernels and mixed precision on a real GPU. Without one, these tests are skipped."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import roi_align

from gn_det.ops import group_norm, select

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

from gn_det.ops.roi_align import roi_align_levels

# (N, C, H, W): maps of an R50-FPN at 800 pixels that are split over programs, and RoIs that are not
SHAPES = [(1, 64, 400, 608), (2, 256, 200, 304), (1, 512, 100, 152), (2, 1024, 50, 76), (1, 2048, 25, 38), (2, 256, 25, 38),
          (500, 256, 7, 7), (100, 256, 14, 14), (1, 96, 33, 47), (3, 40, 5, 9)]  # fmt: skip


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(select, "forced", "triton")  # so that a kernel that fails is an error
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_group_norm_equals_float64(shape, dtype, last, with_residual):
    memory_format = torch.channels_last if last else torch.contiguous_format
    make = lambda: torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=memory_format)  # noqa: E731
    groups = 32 if shape[1] % 32 == 0 else 8
    x, residual, dy = 2 * make() + 1, make() if with_residual else None, make()
    weight, bias = torch.randn(shape[1], device="cuda"), torch.randn(shape[1], device="cuda")

    def run(kind: torch.dtype) -> list[torch.Tensor]:
        inputs = [t.to(kind if t is x or t is residual else torch.promote_types(kind, torch.float32)) for t in
                  (x, weight, bias, residual) if t is not None]  # fmt: skip
        inputs = [t.detach().requires_grad_() for t in inputs]
        y = group_norm(inputs[0], groups, *inputs[1:3], 1e-5, inputs[3] if with_residual else None, "relu")
        return [y, *torch.autograd.grad(y, inputs, dy.to(kind))]

    for repetition in range(2):  # the second one takes the short path of the launcher
        found, expected = run(dtype), run(torch.float64)
        for a, b in zip(found, expected, strict=True):
            # Where the input of the ReLU is within rounding of 0, its mask may differ.
            error = (a.double() - b).norm() / b.norm()
            assert error < (1e-4 if dtype is torch.float32 else 2e-2), (repetition, error)


def test_results_are_deterministic():
    x = torch.randn(2, 256, 100, 152, device="cuda", requires_grad=True)
    weight = torch.randn(256, device="cuda", requires_grad=True)
    results = []
    for _ in range(5):
        y = group_norm(x, 32, weight, None, activation="relu")
        results.append([y, *torch.autograd.grad(y, (x, weight), torch.ones_like(y))])
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(results[0], result, strict=True))


def test_streams_do_not_disturb_each_other():
    x = torch.randn(2, 256, 100, 152, device="cuda")
    expected = F.group_norm(x, 32).relu()
    streams, outputs = [torch.cuda.Stream() for _ in range(4)], []
    torch.cuda.synchronize()
    for i in range(40):
        with torch.cuda.stream(streams[i % 4]):
            outputs.append(group_norm(x, 32, activation="relu"))
    torch.cuda.synchronize()
    for y in outputs:
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_graph_replays_on_new_values():
    x = torch.randn(2, 64, 200, 304, device="cuda")
    group_norm(x, 32, activation="relu")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = group_norm(x, 32, activation="relu")
    for _ in range(3):
        x.normal_()
        graph.replay()
        torch.testing.assert_close(y, F.group_norm(x, 32).relu(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("samples", [0, 2])
def test_roi_align_equals_torchvision(samples):
    x = torch.randn(2, 256, 50, 76, device="cuda").contiguous(memory_format=torch.channels_last).requires_grad_()
    boxes = torch.rand(300, 2, device="cuda").repeat(1, 2) * 600
    boxes[:, 2:] += torch.rand(300, 2, device="cuda") * 300
    rois = torch.cat([torch.arange(300, device="cuda")[:, None] % 2, boxes], 1).float()
    levels = torch.zeros(300, dtype=torch.int64, device="cuda")
    y = roi_align_levels([x], rois, levels, (7, 7), [1 / 16], samples, True)
    expected = roi_align(x, rois, (7, 7), 1 / 16, samples, True)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    dy = torch.randn_like(y)
    (a,), (b,) = (torch.autograd.grad(out, x, dy) for out in (y, expected))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_mixed_precision_step_resembles_float32():
    """One training step of a small model: the losses agree to the resolution of bfloat16."""
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    from gn_det.acceleration.inference import apply_model_options
    from gn_det.acceleration.training import apply_training_options
    from gn_det.benchmark.synthetic import synthetic_images
    from gn_det.config import load_config
    from gn_det.training.step import build_train_step

    cfg = load_config("quickstart_R18_FPN_gn_scratch", ["MODEL.DEVICE", "cuda", "DATASETS.TEST", "()"])
    images = synthetic_images(2, (256, 320), cfg.MODEL.ROI_HEADS.NUM_CLASSES, "cuda", 0)
    plain = build_model(cfg)
    losses = []
    for mixed in (False, True):
        cfg.GPU.MIXED_PRECISION = mixed
        model = apply_model_options(cfg, copy.deepcopy(plain), for_training=True)
        apply_training_options(cfg, model)
        model.train()
        step = build_train_step(cfg, model, [images], torch.optim.SGD(model.parameters(), 0.01))
        torch.manual_seed(0)
        with EventStorage() as storage:
            step.iter = 0
            step.run_step()
            losses.append(storage.latest()["total_loss"][0])
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
