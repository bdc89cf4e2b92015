"""Time what the host does for one GN layer until its kernels are launched."""

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import torch
import torch.nn.functional as F

from ..ops import group_norm
from .stages import Setup
from .timing import TimedCall, interleave, median_seconds, ratio, stopwatch

GROUPS = 32
_MIN_SECONDS = 0.02  # of repeated calls per timing
# (N, C, H, W): a feature map, which is split over several programs, and RoIs, which are not
SHAPES = {"map": (1, 64, 128, 128), "RoIs": (4, 256, 7, 7)}
# Kernel launches of PyTorch's and of gn_det's kernels. PyTorch: three for GN and one for the ReLU; one for the
# gradient of the ReLU and four for that of GN.
LAUNCHES = {"map": {"forward": (4, 2), "backward": (5, 2)}, "RoIs": {"forward": (4, 1), "backward": (5, 2)}}


def host(setup: Setup) -> dict:
    """Time one call of GN + ReLU on the host, with the launches of gn_det's kernels left out.

    PyTorch's operations run on tensors of one pixel on the CPU, so that their time is that of the dispatch. Neither
    side launches a kernel; the table adds the number of launches.

    Returns:
        A dict with the keys:
            "repeats": from ``setup``.
            "rows": a list of dicts, one per shape and direction, each with
                "name", "direction": what was called.
                "stock", "gn_det": {"seconds": median, "spread": [minimum, maximum]} of one call.
                "ratio": {"ratio": stock time / gn_det time, "spread"}.
                "launches": [number of kernels of stock, of gn_det].
    """
    rows = []
    with _no_launches():
        for name, shape in SHAPES.items():
            calls = {"stock": _calls(shape, None), "gn_det": _calls(shape, "triton")}
            for direction in ("forward", "backward"):
                timed = [TimedCall(side, calls[side][direction], lambda: None, side) for side in calls]
                times = interleave(timed, setup.repeats, stopwatch("cpu", _MIN_SECONDS), description=f"host {name}")
                row = {side: median_seconds(values) for side, values in times.items()}
                compared = {"ratio": ratio(times["stock"], times["gn_det"]), "launches": LAUNCHES[name][direction]}
                rows.append({"name": name, "direction": direction, **row, **compared})
    return {"repeats": setup.repeats, "rows": rows}


def _calls(shape: tuple[int, ...], implementation: str | None) -> dict[str, Callable[[], object]]:
    """Return the functions to time: a forward pass that records the gradient, and a backward pass."""
    x = torch.zeros(shape if implementation else (1, shape[1], 1, 1), requires_grad=True)
    weight, bias = (torch.ones(shape[1], requires_grad=True) for _ in range(2))

    def forward() -> torch.Tensor:
        if implementation is None:
            return F.relu_(F.group_norm(x, GROUPS, weight, bias))
        return group_norm(x, GROUPS, weight, bias, activation="relu", implementation=implementation)

    y = forward()
    dy = torch.ones_like(y)
    backward = lambda: torch.autograd.grad(y, (x, weight, bias), dy, retain_graph=True)  # noqa: E731
    return {"forward": forward, "backward": backward}


class _NoKernel:
    """Stands for a compiled kernel, and launches nothing."""

    def __getitem__(self, grid: tuple) -> Callable[..., None]:
        return lambda *args, stream: None


@contextlib.contextmanager
def _no_launches() -> Iterator[None]:
    """Let gn_det's kernels be found compiled, and not be launched."""
    from ..ops.launcher import Kernel  # Triton is not available on every platform

    def find(kernel: Kernel, key: tuple, *_: object) -> None:
        kernel._compiled[key] = _NoKernel(), ()

    with mock.patch.object(Kernel, "_launch_first", find):
        yield
