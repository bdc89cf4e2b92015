"""How often the host waits for the GPU in a training step, counted on a simulated GPU."""

from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from gn_det.acceleration.on_device.apply import use_fewer_syncs
from helpers.simulated_gpu import SimulatedGPU, to_simulated_gpu


def waits(model, inputs) -> SimulatedGPU:
    with SimulatedGPU() as gpu, EventStorage():
        to_simulated_gpu(model, gpu)
        losses = model(inputs)
        sum(losses.values()).backward()
    return gpu


def test_count(tiny_cfg, batch):
    cfg = tiny_cfg("quickstart_R18_FPN_gn_scratch")
    inputs = batch(2, 3, classes=3)
    stock = waits(build_model(cfg).train(), inputs)
    print(stock.waits, stock.waits.total(), stock.copies)
    changed = waits(use_fewer_syncs(build_model(cfg).train()), inputs)
    print(changed.waits, changed.waits.total(), changed.copies)
    assert 0
