"""How often the host waits for the GPU in a training step, counted on a simulated GPU."""

from collections import Counter

from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from gn_det.acceleration.on_device.apply import use_fewer_syncs
from gn_det.acceleration.on_device.scalars import read_scalars
from helpers.polygons import with_polygons
from helpers.simulated_gpu import SimulatedGPU, to_simulated_gpu

SIZES = "MODEL.RPN.PRE_NMS_TOPK_TRAIN 2000 MODEL.RPN.POST_NMS_TOPK_TRAIN 1000 MODEL.RPN.BATCH_SIZE_PER_IMAGE 256"


def step(model: nn.Module, inputs: list[dict]) -> tuple[SimulatedGPU, int]:
    """Compute losses and gradients; return the counts, and how often reading the metrics waits."""
    with SimulatedGPU() as gpu, EventStorage() as storage:
        to_simulated_gpu(model, gpu)
        losses = model(inputs)
        sum(losses.values()).backward()
        in_step = gpu.waits.total()
        read_scalars(storage)
    return gpu, gpu.waits.total() - in_step


def test_a_step_waits_once_for_nms(tiny_cfg, batch):
    cfg = tiny_cfg("quickstart_R18_FPN_gn_scratch", *SIZES.split())
    inputs = with_polygons(batch(3, 8, height=320, width=480, classes=3))
    stock, at_read = step(build_model(cfg).train(), inputs)
    assert stock.waits == {
        "nonzero": 25,
        "copy from the host": 22,
        "_local_scalar_dense": 21,
        "index": 6,
        "copy to the host": 6,
        "nms": 2,
        "repeat_interleave": 2,
    }
    assert (stock.waits.total(), stock.copies, at_read) == (84, 0, 0)
    changed, at_read = step(use_fewer_syncs(build_model(cfg).train()), inputs)
    assert changed.waits - Counter(nms=1) == {"copy to the host": 1} and at_read == 1
    assert changed.copies == 9
