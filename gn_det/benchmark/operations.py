"""The stage of the single operation: GN + ReLU on the shapes of an R50-FPN, beside PyTorch's own and beside a copy.

Bandwidth is of the bytes that have to be moved at the least, for a tensor of S bytes: 2 S forward (x read, y written), and
5 S with backward (and x and dy read, dx written). A copy moves 2 S. What an implementation moves beyond that, it pays for.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ..acceleration.cpu_memory import keep_freed_memory
from ..ops import group_norm
from .stages import Setup
from .timing import Subject, interleave, ratio, seconds, stopwatch

GROUPS = 32
DIRECTIONS = {"forward": 2, "forward + backward": 5}  # -> times S
VARIANTS = {
    "float32 NCHW": (torch.float32, torch.contiguous_format),
    "float32 channels_last": (torch.float32, torch.channels_last),
    "bfloat16 channels_last": (torch.bfloat16, torch.channels_last),
}
_LEAST = 0.02  # seconds of one measurement


def shapes(setup: Setup) -> dict[str, tuple[int, int, int, int]]:
    """What GN meets in an R50-FPN at the images' size, and on the RoIs that the config allows: name -> (N, C, H, W)."""
    named = {"stem": (64, 2), "res2": (256, 4), "res3": (512, 8), "res4": (1024, 16), "res5": (2048, 32)}
    named |= {f"FPN p{level}": (256, 2**level) for level in range(2, 7)}
    maps = {
        name: (setup.batch, channels, *(math.ceil(side / stride) for side in setup.size))
        for name, (channels, stride) in named.items()
    }
    boxes, masks = setup.cfg.MODEL.RPN.POST_NMS_TOPK_TEST, setup.cfg.TEST.DETECTIONS_PER_IMAGE
    rois = {"box RoIs": (boxes * setup.batch, 256, 7, 7), "mask RoIs": (masks * setup.batch, 256, 14, 14)}
    return {**maps, **rois}  # type: ignore[dict-item]


def operations(setup: Setup) -> dict:
    """GN + ReLU of gn_det.ops, and ``F.relu(F.group_norm(x))`` of the same tensor, in the same memory format and dtype.

    Returns:
        {"size", "batch", "repeats", "rows": [{"name", "shape", "variant", "direction", "stock", "gn_det", "copy": each
        {"seconds", "spread"}, "ratio": {"ratio", "spread"}, "of_copy": the share of the copy's bandwidth, in the same form,
        "copy_gigabytes": a second}], "summary": {variant: {direction: {"ratio": geometric mean of the shapes, "spread":
        [least, most] of them, "of_copy": of all shapes together}}}}.
    """
    rows: list[dict] = []
    named = shapes(setup)
    total = len(named) * len(VARIANTS) * len(DIRECTIONS)
    for (name, shape), variant in itertools.product(named.items(), VARIANTS):
        case = _Case.make(shape, variant, setup)
        for direction in DIRECTIONS:
            what = f"ops {len(rows) + 1} of {total}: {name}, {variant}, {direction}"
            row = {"name": name, "shape": list(shape), "variant": variant, "direction": direction}
            rows.append(row | _measure(case, direction, setup, what))
    summary = {v: {d: _summary([r for r in rows if (r["variant"], r["direction"]) == (v, d)]) for d in DIRECTIONS}
               for v in VARIANTS}  # fmt: skip
    return {**setup.said(), "rows": rows, "summary": summary}


@dataclasses.dataclass
class _Case:
    """Inputs. The affine is in x's dtype for PyTorch, and in float32 for gn_det, whose models keep it so."""

    x: torch.Tensor
    dy: torch.Tensor
    target: torch.Tensor
    affine: dict[str, list[torch.Tensor]]  # who -> weight and bias

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

    def call(self, who: str, direction: str) -> Callable[[], object]:
        """What is timed. It returns the output, or the gradients."""
        weight, bias = self.affine[who] if who in self.affine else self.affine["stock"]
        operation = {
            "stock": lambda: F.relu(F.group_norm(self.x, GROUPS, weight, bias)),
            "gn_det": lambda: group_norm(self.x, GROUPS, weight, bias, activation="relu"),
            "copy": lambda: self.target.detach().copy_(self.x.detach()),
        }[who]

        def forward():
            with torch.no_grad():
                return operation()

        if who == "copy" or direction == "forward":
            return forward
        return lambda: torch.autograd.grad(operation(), (self.x, weight, bias), self.dy)


def _measure(case: _Case, direction: str, setup: Setup, what: str) -> dict:
    def subject(who: str) -> Subject:
        stock = who == "stock"
        return Subject(
            who, case.call(who, direction), lambda: keep_freed_memory(not stock), "stock" if stock else "gn_det"
        )

    subjects = [subject(who) for who in ("stock", "gn_det", "copy")]
    times = interleave(subjects, setup.repeats, stopwatch(setup.device, _LEAST), what=what)
    size = case.x.numel() * case.x.element_size()
    weighed = [seconds * DIRECTIONS[direction] / 2 for seconds in times["copy"]]  # of a copy of as many bytes
    return {
        **{who: seconds(values) for who, values in times.items()},
        "ratio": ratio(times["stock"], times["gn_det"]),
        "of_copy": ratio(weighed, times["gn_det"]),
        "copy_gigabytes": 2 * size / seconds(times["copy"])["seconds"] / 1e9,
    }


def _summary(rows: list[dict]) -> dict:
    ratios = [row["ratio"]["ratio"] for row in rows]
    factor = DIRECTIONS[rows[0]["direction"]] / 2
    copies, ours = (sum(row[who]["seconds"] for row in rows) for who in ("copy", "gn_det"))
    return {
        "ratio": math.exp(sum(map(math.log, ratios)) / len(ratios)),
        "spread": [min(ratios), max(ratios)],
        "of_copy": factor * copies / ours,
    }
