"""Which part of a detector is at work when: its seconds, by hooks on its modules."""

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


class Stretches:
    """Seconds by stretch of a call. On CUDA each new stretch waits for the GPU, so that their sum is a little more."""

    def __init__(self, device: str):
        self._cuda = device.startswith("cuda")
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._name, self._since = "", 0.0

    def run(self, call: Callable[[], object], first: str) -> dict[str, float]:
        """What each stretch of ``call()`` took, of which the one called ``first`` begins at once."""
        self._seconds.clear()
        self._name, self._since = first, self._now()
        call()
        self.enter("")
        return dict(self._seconds)

    def enter(self, name: str) -> None:
        """From here on it is this stretch that takes the time."""
        now = self._now()
        self._seconds[self._name] += now - self._since
        self._name, self._since = name, now

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


class Timeline(Stretches):
    """Seconds by part of PARTS.

    Args:
        model: a model that ``RCNNParts`` knows, in evaluation mode.
    """

    def __init__(self, model: nn.Module, device: str):
        super().__init__(device)
        self._head = "box"
        self._watch(model)

    def parts(self, call: Callable[[], object]) -> dict[str, float]:
        """The seconds of each part in what ``call()`` does with the model, in the order of PARTS."""
        self._head = "box"
        taken = self.run(call, "input")
        return {part: taken[part] for part in PARTS if part in taken}

    def _watch(self, model: Any) -> None:
        backbone, heads = model.backbone, model.roi_heads
        if hasattr(backbone, "bottom_up"):
            self._before(backbone, "FPN")
            self._before(backbone.bottom_up, "backbone")
            self._after(backbone.bottom_up, "FPN")
        else:
            self._before(backbone, "backbone")
        self._after(backbone, "RPN")
        names = ("box_pooler", "mask_pooler", "pooler")  # the last one for both in C4 models
        for pooler in (getattr(heads, name) for name in names if hasattr(heads, name)):
            pooler.register_forward_pre_hook(lambda *_: self.enter(f"{self._head} pooling"))
            pooler.register_forward_hook(lambda *_: self.enter(f"{self._head} head"))
        heads.box_predictor.register_forward_hook(self._boxes_are_predicted)
        self._after(heads, "pasting")

    def _before(self, module: nn.Module, part: str) -> None:
        module.register_forward_pre_hook(lambda *_: self.enter(part))

    def _after(self, module: nn.Module, part: str) -> None:
        module.register_forward_hook(lambda *_: self.enter(part))

    def _boxes_are_predicted(self, *_) -> None:
        self._head = "mask"
        self.enter("box post-processing")
