"""Time inference of whole models and by part, and define the settings of all benchmark stages."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from .candidates import Candidate, build_candidates, candidate_name
from .outputs import differences
from .peak import PEAK_MEANING, peak_bytes
from .phases import PartTimer
from .synthetic import synthetic_images
from .timing import TimedCall, interleave, median_seconds, ratio, self_timed, stopwatch

STOCK = candidate_name("GN", "stock")


@dataclasses.dataclass(frozen=True)
class Setup:
    """The settings of a benchmark stage."""

    cfg: CfgNode
    size: tuple[int, int]  # (height, width) of the images in pixels
    batch: int  # images per batch
    repeats: int  # timed rounds
    seed: int
    candidates: Sequence[str] = ()  # names; all candidates if empty

    @property
    def device(self) -> str:
        """``MODEL.DEVICE`` of the config."""
        return self.cfg.MODEL.DEVICE

    @property
    def peak_meaning(self) -> str:
        """A sentence for the record about how "peak" was measured on this device."""
        return PEAK_MEANING["cuda" if self.device.startswith("cuda") else "cpu"]

    def build(self, training: bool = False) -> tuple[list[Candidate], list[dict]]:
        """Return the candidates, and a batch of images with objects."""
        torch.manual_seed(self.seed)
        classes = self.cfg.MODEL.ROI_HEADS.NUM_CLASSES
        images = synthetic_images(self.batch, self.size, classes, self.device, self.seed)
        return build_candidates(self.cfg, images, training, self.candidates), images

    def as_record(self) -> dict:
        """Return the settings that the record of each stage contains."""
        return {"size": list(self.size), "batch": self.batch, "repeats": self.repeats}


def inference(setup: Setup) -> dict:
    """Time inference of whole models, from images on the device to masks pasted into full-size images.

    Returns:
        A dict with the keys:
            "size", "batch", "repeats": from ``setup``; the size is [height, width] in pixels.
            "memory": a sentence about how "peak" was measured.
            "candidates": {name: dict}, each with
                "norm", "implementation": see :class:`Candidate`.
                "seconds", "spread": median, and [minimum, maximum], per batch.
                "rois", "detections": number per batch.
                "peak": peak memory in bytes.
                "difference": see :func:`differences`; only for gn_det's GN models, if stock is measured too.
            "ratios", "gn_overhead": see :func:`comparisons`.
    """
    candidates, images = setup.build()
    calls = {candidate.name: _prediction(candidate, images) for candidate in candidates}
    timed_calls = [candidate.timed_call(calls[candidate.name]) for candidate in candidates]
    times = interleave(timed_calls, setup.repeats, stopwatch(setup.device), description="inference")
    rows: dict[str, dict] = {}
    outputs = {}
    for candidate in candidates:
        name = candidate.name
        outputs[name], rois = _run_and_count_rois(candidate.model, calls[name])
        row = {"norm": candidate.norm, "implementation": candidate.implementation, **median_seconds(times[name])}
        rows[name] = row | {"rois": rois, "detections": sum(map(len, outputs[name]))}
        rows[name]["peak"] = peak_bytes(candidate.model, calls[name])
        if candidate.norm == "GN" and candidate.implementation != "stock" and STOCK in outputs:
            rows[name]["difference"] = differences(outputs[STOCK], outputs[name])
    facts = {**setup.as_record(), "memory": setup.peak_meaning}
    return {**facts, "candidates": rows, **comparisons(candidates, times)}


def parts(setup: Setup) -> dict:
    """Time inference by part of the model, with the same work for all candidates.

    All candidates have the same number of RoIs and detections, because they get the proposals and the box
    predictor's outputs of the first candidate.

    Returns:
        A dict with the keys:
            "size", "batch", "repeats": from ``setup``; the size is [height, width] in pixels.
            "candidates": {name: dict}, each with
                "norm", "implementation": see :class:`Candidate`.
                "rois", "detections": number per batch.
                "parts": {name in PARTS: {"seconds": median, "spread": [minimum, maximum]}}.
    """
    candidates, images = setup.build()
    _share_proposals_and_predictions(candidates, images)
    counts = {c.name: _run_and_count_rois(c.model, _prediction(c, images)) for c in candidates}
    work = {name: (rois, sum(map(len, outputs))) for name, (outputs, rois) in counts.items()}
    assert len(set(work.values())) == 1, f"the candidates have different work: {work}"
    timers = {model: PartTimer(model, setup.device) for model in {candidate.model for candidate in candidates}}

    def timed_call(candidate: Candidate) -> TimedCall:
        return candidate.timed_call(lambda: timers[candidate.model].parts(_prediction(candidate, images)))

    rounds = interleave([timed_call(c) for c in candidates], setup.repeats, self_timed, description="parts")
    rows = {}
    for candidate in candidates:
        values = rounds[candidate.name]
        by_part = {part: median_seconds([value[part] for value in values]) for part in values[0]}
        rois, detections = work[candidate.name]
        row = {"norm": candidate.norm, "implementation": candidate.implementation, "rois": rois}
        rows[candidate.name] = row | {"detections": detections, "parts": by_part}
    return {**setup.as_record(), "candidates": rows}


def _share_proposals_and_predictions(candidates: Sequence[Candidate], images: list[dict]) -> None:
    """Make RPN and box predictor of every model return the outputs of the first model.

    Each model still computes its outputs, so that the time of this work is measured; hooks then replace them.
    """
    first: Any = candidates[0].model
    outputs: dict[str, Any] = {}
    names = ("proposal_generator", "roi_heads.box_predictor")
    hooks = [
        first.get_submodule(name).register_forward_hook(lambda _, i, output, name=name: outputs.update({name: output}))
        for name in names
    ]
    _prediction(candidates[0], images)()
    for hook in hooks:
        hook.remove()
    for model in {candidate.model for candidate in candidates}:
        for name in names:
            model.get_submodule(name).register_forward_hook(lambda *_, name=name: outputs[name])


def _prediction(candidate: Candidate, images: list[dict]) -> Callable[[], list]:
    """Return a function that runs the model and returns the ``Instances`` of each image."""
    inputs = [{"image": image["image"]} for image in images]

    def run() -> list:
        with torch.no_grad(), candidate.precision():
            return [output["instances"] for output in candidate.model(inputs)]

    return run


def _run_and_count_rois(model: Any, run: Callable[[], list]) -> tuple[list, int]:
    """Return the result of ``run()``, and the number of RoIs that the model proposed in it."""
    counts: list[int] = []

    def count(module: nn.Module, inputs: tuple, output: tuple) -> None:
        counts.append(sum(map(len, output[0])))

    hook = model.proposal_generator.register_forward_hook(count)
    try:
        return run(), counts[-1]
    finally:
        hook.remove()


def comparisons(candidates: Sequence[Candidate], times: dict[str, list[float]]) -> dict:
    """Compare the times of gn_det with those of stock, and of GN with those of the other norms.

    Args:
        times: {name of a candidate: seconds of each round}.

    Returns:
        A dict with the keys (see :func:`ratio` for the form of a ratio):
            "ratios": {name of a gn_det candidate with GN: stock time / its time}.
            "gn_overhead": {implementation: {norm: GN time / time with this norm}}.
    """
    gn_det_names = [c.name for c in candidates if c.norm == "GN" and c.implementation != "stock"]
    ratios = {name: ratio(times[STOCK], times[name]) for name in gn_det_names} if STOCK in times else {}
    overhead: dict[str, dict] = {}
    for candidate in candidates:
        gn = candidate_name("GN", candidate.implementation)
        if candidate.norm != "GN" and gn in times:
            by_norm = overhead.setdefault(candidate.implementation, {})
            by_norm[candidate.norm] = ratio(times[gn], times[candidate.name])
    return {"ratios": ratios, "gn_overhead": overhead}
