"""The stage that runs training steps: forward, backward and the optimizer's."""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.solver import build_optimizer as detectron2_build_optimizer
from detectron2.utils.events import EventStorage
from torch import nn

from ..training.solver import build_optimizer
from .made_up import made_up_proposals
from .peak import MEANING, peak_bytes
from .sides import Side
from .stages import Setup, comparisons
from .timeline import Stretches
from .timing import Subject, interleave, its_own_seconds, seconds

_STEPS = ("forward", "backward", "optimizer")
_RATE = 1e-9  # of learning, so that the last step has the same work as the first


def training(setup: Setup) -> dict:
    """Training steps. Each side's RPN does its work, and then all take the same made-up proposals and the same samples.

    Returns:
        {"size", "batch", "repeats", "memory": what "peak" means, "sides": {name: {"norm", "way", "seconds", "spread",
        "steps": {"forward", "backward", "optimizer"}, "rois", "foreground" (a step), "peak" (bytes)}}, "ratios", "above"}.
    """
    sides, images = setup.build(trains=True)
    number = setup.cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN
    proposals = [made_up_proposals(image, number, setup.device, setup.seed + n) for n, image in enumerate(images)]
    steps: dict[nn.Module, _Steps] = {}  # fp32 and bf16 share a model and its optimizer
    for side in sides:
        steps[side.model] = steps.get(side.model) or _Steps(side, images, proposals, setup)

    def subject(side: Side) -> Subject:
        return side.subject(lambda: steps[side.model].step(side), setup.seed)  # so each step draws the same samples

    rounds = interleave([subject(side) for side in sides], setup.repeats, its_own_seconds, what="training")
    times = {name: [sum(value.values()) for value in values] for name, values in rounds.items()}
    rows = {}
    for side in sides:
        by_step = {step: seconds([value[step] for value in rounds[side.name]]) for step in _STEPS}
        row = {"norm": side.norm, "way": side.way, **seconds(times[side.name]), "steps": by_step}
        rows[side.name] = row | steps[side.model].counts | {"peak": steps[side.model].peak(side, setup.seed)}
    work = {name: (row["rois"], row["foreground"]) for name, row in rows.items()}
    assert len(set(work.values())) == 1, f"the sides have different work: {work}"
    kind = "cuda" if setup.device.startswith("cuda") else "cpu"
    return {**setup.said(), "memory": MEANING[kind], "sides": rows, **comparisons(sides, times)}


class _Steps:
    """A model that is trained."""

    def __init__(self, side: Side, images: list[dict], proposals: list, setup: Setup):
        cfg = side.cfg.clone()
        cfg.SOLVER.BASE_LR = _RATE
        build: Callable = detectron2_build_optimizer if side.way == "stock" else build_optimizer
        self._optimizer = build(cfg, side.model)
        self.counts: dict[str, int] = {}
        self._images = images
        self._stretches = Stretches(setup.device)
        rpn: Any = side.model.proposal_generator
        rpn.register_forward_hook(lambda _, inputs, output: ([p[:] for p in proposals], output[1]))

    def step(self, side: Side) -> dict[str, float]:
        """Seconds of forward, backward and the optimizer's step."""
        return self._stretches.run(lambda: self._step(side), "forward")

    def peak(self, side: Side, seed: int) -> int:
        """Bytes, in forward and backward."""
        torch.manual_seed(seed)
        return peak_bytes(side.model, lambda: self._gradients(side), self._optimizer)

    def _step(self, side: Side) -> None:
        self._optimizer.zero_grad()
        self._gradients(side)
        self._stretches.enter("optimizer")
        self._optimizer.step()

    def _gradients(self, side: Side) -> None:
        with EventStorage() as storage:
            with side.precision():
                loss = sum(side.model(self._images).values())
            latest = {name: value for name, (value, _) in storage.latest().items()}
        self._stretches.enter("backward")
        loss.backward()
        foreground, rest = (round(latest[f"roi_head/num_{kind}_samples"] * len(self._images)) for kind in ("fg", "bg"))
        self.counts = {"rois": foreground + rest, "foreground": foreground}
