import types
import warnings

import pytest
import torch
from torch.autograd import DeviceType

from gn_det.benchmark.gpu import profiling


def average(key: str, count: int, microseconds: float = 0.0, device=DeviceType.CUDA, annotation: bool = False):
    facts = {"self_device_time_total": microseconds, "device_type": device, "is_user_annotation": annotation}
    return types.SimpleNamespace(key=key, count=count, **facts)


def test_summarize_counts_launches_of_the_host_and_work_of_the_gpu_per_iteration():
    rows = [
        average("sm90_xmma_fprop", 40, 2e6),
        average("Memcpy DtoH (Device -> Pageable)", 4, 1e6),
        average("Optimizer.step#SGD.step", 2, 9e6, annotation=True),
        average("Stream Sync", 4, 9e6),
        average("cudaLaunchKernel", 20, device=DeviceType.CPU),
        average("cudaLaunchKernelExC", 6, device=DeviceType.CPU),
        average("cudaGraphLaunch", 2, device=DeviceType.CPU),
        average("cuLaunchKernel", 2, device=DeviceType.CPU),
        average("cudaStreamSynchronize", 8, device=DeviceType.CPU),
        average("cudaMalloc", 3, device=DeviceType.CPU),
    ]
    expected = {"gpu_seconds": 1.5, "kernels": 20.0, "launches": 15.0, "synchronizations": 4.0}
    assert profiling.summarize(rows, 2) == expected


def test_places_of_synchronizations_are_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)

    def run():
        for _ in range(2):
            warnings.warn_explicit(
                "called a synchronizing CUDA operation", UserWarning, "/a/detectron2/layers/nms.py", 20
            )
        warnings.warn("something else", stacklevel=1)

    assert profiling.synchronizing_places(run) == {"detectron2/layers/nms.py:20": 2}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_profile_of_a_gpu():
    x = torch.ones(1000, device="cuda")

    def run(iterations: int):
        for _ in range(iterations):
            (x + 1).sum().item()

    found = profiling.profile_gpu(run, 2)
    assert found["kernels"] >= 2 and found["launches"] >= 2 and found["synchronizations"] >= 1
    assert 0 < found["gpu_seconds"] < 0.01 and sum(found["places"].values()) == 1
