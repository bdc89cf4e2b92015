"""Time training steps: forward, backward and optimizer."""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.solver import build_optimizer as detectron2_build_optimizer
from detectron2.utils.events import EventStorage
from torch import nn

from ..training.solver import build_optimizer
from .candidates import Candidate
from .peak import peak_bytes
from .phases import PhaseTimer
from .stages import Setup, comparisons
from .synthetic import synthetic_proposals
from .timing import TimedCall, interleave, median_seconds, self_timed

_STEPS = ("forward", "backward", "optimizer")
_LEARNING_RATE = 1e-9  # so low that the weights, and with them the work per step, do not change


def training(setup: Setup) -> dict:
    """Time training steps, with the same RoIs for all candidates.

    Each RPN computes its proposals; all candidates then continue with the same synthetic proposals.

    Returns:
        A dict with the keys:
            "size", "batch", "repeats": from ``setup``; the size is [height, width] in pixels.
            "memory": a sentence about how "peak" was measured.
            "candidates": {name: dict}, each with
                "norm", "implementation": see :class:`Candidate`.
                "seconds", "spread": median, and [minimum, maximum], of a whole step.
                "steps": {"forward", "backward" and "optimizer": {"seconds", "spread"}}.
                "rois", "foreground": sampled RoIs per step, and how many of them match an object.
                "peak": peak memory of forward and backward in bytes.
            "ratios", "gn_overhead": see :func:`comparisons`.
    """
    candidates, images = setup.build(training=True)
    count = setup.cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN
    proposals = [synthetic_proposals(image, count, setup.device, setup.seed + n) for n, image in enumerate(images)]
    steps: dict[nn.Module, _TrainingStep] = {}  # the fp32 and bf16 candidates share a model and its optimizer
    for candidate in candidates:
        steps[candidate.model] = steps.get(candidate.model) or _TrainingStep(candidate, images, proposals, setup)

    def timed_call(candidate: Candidate) -> TimedCall:
        step = steps[candidate.model]
        return candidate.timed_call(lambda: step.run(candidate), setup.seed)  # the seed fixes the sampled RoIs

    rounds = interleave([timed_call(c) for c in candidates], setup.repeats, self_timed, description="training")
    times = {name: [sum(value.values()) for value in values] for name, values in rounds.items()}
    rows = {}
    for candidate in candidates:
        name, step = candidate.name, steps[candidate.model]
        by_step = {key: median_seconds([value[key] for value in rounds[name]]) for key in _STEPS}
        row = {"norm": candidate.norm, "implementation": candidate.implementation, **median_seconds(times[name])}
        rows[name] = row | {"steps": by_step} | step.counts | {"peak": step.peak(candidate, setup.seed)}
    work = {name: (row["rois"], row["foreground"]) for name, row in rows.items()}
    assert len(set(work.values())) == 1, f"the candidates have different work: {work}"
    facts = {**setup.as_record(), "memory": setup.peak_meaning}
    return {**facts, "candidates": rows, **comparisons(candidates, times)}


class _TrainingStep:
    """Run training steps of one model on fixed images and proposals.

    Attributes:
        counts: "rois" and "foreground", the numbers of sampled RoIs in the last step.
    """

    def __init__(self, candidate: Candidate, images: list[dict], proposals: list, setup: Setup):
        cfg = candidate.cfg.clone()
        cfg.SOLVER.BASE_LR = _LEARNING_RATE
        build: Callable = detectron2_build_optimizer if candidate.implementation == "stock" else build_optimizer
        self._optimizer = build(cfg, candidate.model)
        self.counts: dict[str, int] = {}
        self._images = images
        self._timer = PhaseTimer(setup.device)
        rpn: Any = candidate.model.proposal_generator
        rpn.register_forward_hook(lambda _, inputs, output: ([p[:] for p in proposals], output[1]))

    def run(self, candidate: Candidate) -> dict[str, float]:
        """Run a step and return the seconds of "forward", "backward" and "optimizer"."""
        return self._timer.run(lambda: self._step(candidate), "forward")

    def peak(self, candidate: Candidate, seed: int) -> int:
        """Return the peak memory of forward and backward, in bytes."""
        torch.manual_seed(seed)
        return peak_bytes(candidate.model, lambda: self._compute_gradients(candidate), self._optimizer)

    def _step(self, candidate: Candidate) -> None:
        self._optimizer.zero_grad()
        self._compute_gradients(candidate)
        self._timer.enter("optimizer")
        self._optimizer.step()

    def _compute_gradients(self, candidate: Candidate) -> None:
        with EventStorage() as storage:
            with candidate.precision():
                loss = sum(candidate.model(self._images).values())
            latest = {name: value for name, (value, _) in storage.latest().items()}
        self._timer.enter("backward")
        loss.backward()
        # detectron2 logs the mean number of samples per image
        foreground, rest = (round(latest[f"roi_head/num_{kind}_samples"] * len(self._images)) for kind in ("fg", "bg"))
        self.counts = {"rois": foreground + rest, "foreground": foreground}
