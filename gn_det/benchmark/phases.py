"""Measure the seconds that each part of a detector takes, with hooks on its modules."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

PARTS = (
    "input",
    "backbone",
    "FPN",
    "RPN",
    "box pooling",
    "box head",
    "box post-processing",
    "mask pooling",
    "mask head",
    "pasting",
)


class PhaseTimer:
    """Measure the seconds of each phase of a call.

    On CUDA, each change of phase waits for the GPU, so the sum is a little more than the time of the whole call.
    """

    def __init__(self, device: str):
        self._cuda = device.startswith("cuda")
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._phase, self._start = "", 0.0

    def run(self, call: Callable[[], object], first: str) -> dict[str, float]:
        """Run ``call()``, which begins in the phase ``first``, and return {phase: seconds}."""
        self._seconds.clear()
        self._phase, self._start = first, self._now()
        call()
        self.enter("")
        return dict(self._seconds)

    def enter(self, phase: str) -> None:
        """End the current phase and begin another one, which may have run before."""
        now = self._now()
        self._seconds[self._phase] += now - self._start
        self._phase, self._start = phase, now

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


class PartTimer(PhaseTimer):
    """Measure the seconds of each part of a detector (PARTS) in inference.

    Args:
        model: a model that :class:`gn_det.cost.parts.RCNNParts` supports, in evaluation mode. It gets
            hooks, which stay.
    """

    def __init__(self, model: nn.Module, device: str):
        super().__init__(device)
        self._head = "box"
        self._add_hooks(model)

    def parts(self, call: Callable[[], object]) -> dict[str, float]:
        """Run ``call()``, which calls the model, and return {part: seconds} in the order of PARTS."""
        self._head = "box"
        seconds = self.run(call, "input")
        return {part: seconds[part] for part in PARTS if part in seconds}

    def _add_hooks(self, model: Any) -> None:
        backbone, heads = model.backbone, model.roi_heads
        if hasattr(backbone, "bottom_up"):
            self._enter_before(backbone, "FPN")
            self._enter_before(backbone.bottom_up, "backbone")
            self._enter_after(backbone.bottom_up, "FPN")
        else:
            self._enter_before(backbone, "backbone")
        self._enter_after(backbone, "RPN")
        names = ("box_pooler", "mask_pooler", "pooler")  # C4 models have one "pooler" for boxes and masks
        for pooler in (getattr(heads, name) for name in names if hasattr(heads, name)):
            pooler.register_forward_pre_hook(lambda *_: self.enter(f"{self._head} pooling"))
            pooler.register_forward_hook(lambda *_: self.enter(f"{self._head} head"))
        heads.box_predictor.register_forward_hook(self._after_box_predictor)
        self._enter_after(heads, "pasting")

    def _enter_before(self, module: nn.Module, part: str) -> None:
        module.register_forward_pre_hook(lambda *_: self.enter(part))

    def _enter_after(self, module: nn.Module, part: str) -> None:
        module.register_forward_hook(lambda *_: self.enter(part))

    def _after_box_predictor(self, *_) -> None:
        self._head = "mask"
        self.enter("box post-processing")
