"""Count what the host asks of the GPU: kernels, launches, synchronizations."""

import collections
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cuGraphLaunch")
_WAITS = (
    *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
    *("cuStreamSynchronize", "cuCtxSynchronize", "cuEventSynchronize"),
)
_COPIES = ("Memcpy", "Memset")
_NO_WORK = (" Sync", "Stream Wait Event")  # how the profiler shows waiting in the rows of the GPU
_MAX_PLACES = 10


def profile_gpu(run: Callable[[int], object], iterations: int) -> dict:
    """Profile iterations on a GPU.

    Args:
        run: runs the given number of iterations.

    Returns:
        :func:`summarize`'s result, and "places": {"file:line": number of synchronizations that PyTorch reports
        there in one iteration}, at most the ten most frequent.
    """
    places = synchronizing_places(lambda: run(1))
    torch.cuda.synchronize()
    # Only the GPU's activity: recording each operation of the host takes long to read.
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run(iterations)
        torch.cuda.synchronize()
    result: dict[str, Any] = summarize(profiler.key_averages(), iterations)
    result["synchronizations"] -= 1 / iterations  # the one above
    return result | {"places": places}


def summarize(averages: Iterable[Any], iterations: int) -> dict:
    """Sum up a profile.

    Args:
        averages: what ``profile.key_averages()`` returns.
        iterations: number of iterations that were profiled.

    Returns:
        Per iteration: "gpu_seconds" (time of kernels and copies), "kernels", "launches" (calls of the host; one
        for a whole CUDA graph) and "synchronizations" (calls in which the host waits for the GPU).
    """
    total = dict.fromkeys(("gpu_seconds", "kernels", "launches", "synchronizations"), 0.0)
    for row in averages:
        if row.device_type == DeviceType.CPU:
            total["launches"] += row.count * row.key.startswith(_LAUNCHES)
            total["synchronizations"] += row.count * (row.key in _WAITS)
        elif not getattr(row, "is_user_annotation", False) and not row.key.endswith(_NO_WORK):
            total["gpu_seconds"] += row.self_device_time_total / 1e6
            total["kernels"] += row.count * (not row.key.startswith(_COPIES))
    return {name: value / iterations for name, value in total.items()}


def synchronizing_places(run: Callable[[], object]) -> dict[str, int]:
    """Return {"file:line": number of synchronizations that PyTorch reports there}; see :func:`profile_gpu`.

    Each place is the line of Python code that is nearest to the operation.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    lines = (w for w in caught if "synchronizing CUDA operation" in str(w.message))
    places = collections.Counter(f"{'/'.join(Path(w.filename).parts[-3:])}:{w.lineno}" for w in lines)
    return dict(places.most_common(_MAX_PLACES))
