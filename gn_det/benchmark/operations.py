"""Time GN + ReLU on the feature maps of an R50-FPN, against PyTorch's operations and a copy.

Bandwidth counts the bytes that have to be moved at least, for a tensor of S bytes: 2 S in forward (read x,
write y), and 5 S with backward (also read x and dy, write dx). A copy moves 2 S. Any other traffic of an
implementation lowers its share of the copy's bandwidth.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F

from ..acceleration.cpu_memory import keep_freed_memory
from ..ops import group_norm
from .stages import Setup
from .timing import TimedCall, interleave, median_seconds, ratio, stopwatch

GROUPS = 32
DIRECTIONS = {"forward": 2, "forward + backward": 5}  # name -> bytes to move, in units of S
VARIANTS = {
    "float32 NCHW": (torch.float32, torch.contiguous_format),
    "float32 channels_last": (torch.float32, torch.channels_last),
    "bfloat16 channels_last": (torch.bfloat16, torch.channels_last),
}
_MIN_SECONDS = 0.02  # of one measurement


def shapes(setup: Setup) -> dict[str, tuple[int, int, int, int]]:
    """Return the shapes on which GN + ReLU is timed: {name: (N, C, H, W)}.

    They are the feature maps of an R50-FPN for images of ``setup.size``, and the RoI features for the
    numbers of proposals and detections that the config allows.
    """
    named = {"stem": (64, 2), "res2": (256, 4), "res3": (512, 8), "res4": (1024, 16), "res5": (2048, 32)}
    named |= {f"FPN p{level}": (256, 2**level) for level in range(2, 7)}
    maps = {
        name: (setup.batch, channels, *(math.ceil(side / stride) for side in setup.size))
        for name, (channels, stride) in named.items()
    }
    boxes, masks = setup.cfg.MODEL.RPN.POST_NMS_TOPK_TEST, setup.cfg.TEST.DETECTIONS_PER_IMAGE
    rois = {"box RoIs": (boxes * setup.batch, 256, 7, 7), "mask RoIs": (masks * setup.batch, 256, 14, 14)}
    return {**maps, **rois}  # type: ignore[dict-item]


def operations(setup: Setup, variants: Iterable[str] = tuple(VARIANTS)) -> dict:
    """Time ``group_norm`` of gn_det.ops and ``F.relu(F.group_norm(x))`` on the same tensors.

    Args:
        variants: keys of VARIANTS.

    Returns:
        A dict with the keys:
            "size", "batch", "repeats": from ``setup``; the size is [height, width] in pixels.
            "rows": list of dicts, one per shape, variant and direction, with
                "name", "shape", "variant", "direction": what was timed.
                "stock", "gn_det", "copy": {"seconds": median, "spread": [minimum, maximum]} of one call.
                "ratio": {"ratio": stock time / gn_det time, "spread"}.
                "bandwidth_share": gn_det's bandwidth / the copy's bandwidth, in the same form.
                "copy_gigabytes": bandwidth of the copy in GB/s.
            "summary": {variant: {direction: dict}}, each with
                "ratio": geometric mean of the ratio over all shapes.
                "spread": [minimum, maximum] of the ratio over all shapes.
                "bandwidth_share": for the total time of all shapes.
    """
    rows: list[dict] = []
    named, variants = shapes(setup), list(variants)
    total = len(named) * len(variants) * len(DIRECTIONS)
    for (name, shape), variant in itertools.product(named.items(), variants):
        case = _Case.make(shape, variant, setup)
        for direction in DIRECTIONS:
            description = f"ops {len(rows) + 1} of {total}: {name}, {variant}, {direction}"
            row = {"name": name, "shape": list(shape), "variant": variant, "direction": direction}
            rows.append(row | _measure(case, direction, setup, description))
    summary = {v: {d: _summarize([r for r in rows if (r["variant"], r["direction"]) == (v, d)]) for d in DIRECTIONS}
               for v in variants}  # fmt: skip
    return {**setup.as_record(), "rows": rows, "summary": summary}


@dataclasses.dataclass
class _Case:
    """The input tensors for one shape and variant.

    Weight and bias have the dtype of x for PyTorch, and float32 for gn_det, as in its models.
    """

    x: torch.Tensor
    dy: torch.Tensor
    target: torch.Tensor  # destination of the copy
    affine: dict[str, list[torch.Tensor]]  # implementation -> [weight, bias]

    @classmethod
    def make(cls, shape: tuple[int, ...], variant: str, setup: Setup) -> "_Case":
        dtype, memory_format = VARIANTS[variant]
        generator = torch.Generator().manual_seed(setup.seed)
        x = torch.randn(shape, generator=generator).to(setup.device, dtype).contiguous(memory_format=memory_format)
        values = [torch.randn(shape[1], generator=generator).to(setup.device) for _ in range(2)]
        affine = {
            "stock": [v.to(dtype).requires_grad_() for v in values],
            "gn_det": [v.requires_grad_() for v in values],
        }
        return cls(x.requires_grad_(), x.detach().roll(1, dims=0), torch.empty_like(x), affine)

    def call(self, implementation: str, direction: str) -> Callable[[], object]:
        """Return the function to time, which returns the output (forward, copy) or the gradients.

        Args:
            implementation: "stock", "gn_det" or "copy"; the copy has no backward.
            direction: a key of DIRECTIONS.
        """
        weight, bias = self.affine[implementation] if implementation in self.affine else self.affine["stock"]
        kernels = "triton" if self.x.is_cuda else None
        operation = {
            "stock": lambda: F.relu(F.group_norm(self.x, GROUPS, weight, bias)),
            "gn_det": lambda: group_norm(self.x, GROUPS, weight, bias, activation="relu", implementation=kernels),
            "copy": lambda: self.target.detach().copy_(self.x.detach()),
        }[implementation]

        def forward():
            with torch.no_grad():
                return operation()

        if implementation == "copy" or direction == "forward":
            return forward
        return lambda: torch.autograd.grad(operation(), (self.x, weight, bias), self.dy)


def _measure(case: _Case, direction: str, setup: Setup, description: str) -> dict:
    def timed_call(implementation: str) -> TimedCall:
        stock = implementation == "stock"
        run = case.call(implementation, direction)
        return TimedCall(implementation, run, lambda: keep_freed_memory(not stock), "stock" if stock else "gn_det")

    calls = [timed_call(implementation) for implementation in ("stock", "gn_det", "copy")]
    times = interleave(calls, setup.repeats, stopwatch(setup.device, _MIN_SECONDS), description=description)
    size = case.x.numel() * case.x.element_size()
    copy_times = [value * DIRECTIONS[direction] / 2 for value in times["copy"]]  # scaled to the same number of bytes
    return {
        **{implementation: median_seconds(values) for implementation, values in times.items()},
        "ratio": ratio(times["stock"], times["gn_det"]),
        "bandwidth_share": ratio(copy_times, times["gn_det"]),
        "copy_gigabytes": 2 * size / median_seconds(times["copy"])["seconds"] / 1e9,
    }


def _summarize(rows: list[dict]) -> dict:
    ratios = [row["ratio"]["ratio"] for row in rows]
    factor = DIRECTIONS[rows[0]["direction"]] / 2
    copy_seconds, gn_det_seconds = (sum(row[key]["seconds"] for row in rows) for key in ("copy", "gn_det"))
    return {
        "ratio": math.exp(sum(map(math.log, ratios)) / len(ratios)),
        "spread": [min(ratios), max(ratios)],
        "bandwidth_share": factor * copy_seconds / gn_det_seconds,
    }
