"""The stages that run whole models: inference, inference by part, and training steps."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from .made_up import made_up_images
from .outputs import differences
from .peak import MEANING, peak_bytes
from .sides import Side, build_sides, side_name
from .timeline import Timeline
from .timing import Subject, interleave, its_own_seconds, ratio, seconds, stopwatch

STOCK = side_name("GN", "stock")


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all stages are told."""

    cfg: CfgNode
    size: tuple[int, int]  # (height, width) of the images in pixels
    batch: int
    repeats: int
    seed: int
    sides: Sequence[str] = ()  # their names; all when empty

    @property
    def device(self) -> str:
        return self.cfg.MODEL.DEVICE

    def build(self, trains: bool = False) -> tuple[list[Side], list[dict]]:
        """The sides, and a batch of images with their objects."""
        torch.manual_seed(self.seed)
        classes = self.cfg.MODEL.ROI_HEADS.NUM_CLASSES
        images = made_up_images(self.batch, self.size, classes, self.device, self.seed)
        return build_sides(self.cfg, images, trains, self.sides), images

    def said(self) -> dict:
        return {"size": list(self.size), "batch": self.batch, "repeats": self.repeats}


def inference(setup: Setup) -> dict:
    """Whole models, from images on the device to pasted masks of the images' size.

    Returns:
        {"size", "batch", "repeats", "memory": what "peak" means, "sides": {name: {"norm", "way", "seconds", "spread",
        "rois", "detections", "peak" (bytes), "difference" to stock, where the norm is GN}}, "ratios", "above"}.
    """
    sides, images = setup.build()
    runs = {side.name: _predicts(side, images) for side in sides}
    subjects = [side.subject(runs[side.name]) for side in sides]
    times = interleave(subjects, setup.repeats, stopwatch(setup.device), what="inference")
    rows: dict[str, dict] = {}
    outputs = {}
    for side in sides:
        outputs[side.name], rois = _with_rois(side.model, runs[side.name])
        rows[side.name] = {**_described(side, times), "rois": rois, "detections": sum(map(len, outputs[side.name]))}
        rows[side.name]["peak"] = peak_bytes(side.model, runs[side.name])
        if side.norm == "GN" and side.way != "stock" and STOCK in outputs:
            rows[side.name]["difference"] = differences(outputs[STOCK], outputs[side.name])
    return {**setup.said(), "memory": MEANING[_kind(setup)], "sides": rows, **comparisons(sides, times)}


def parts(setup: Setup) -> dict:
    """Inference by part. All sides get the first one's proposals and class scores, and so as many RoIs and detections.

    Returns:
        {"size", "batch", "repeats", "sides": {name: {"norm", "way", "rois", "detections", "parts": {part: {"seconds",
        "spread"}}}}}.
    """
    sides, images = setup.build()
    _give_all_the_same(sides, images)
    counts = {side.name: _with_rois(side.model, _predicts(side, images)) for side in sides}
    work = {name: (rois, sum(map(len, outputs))) for name, (outputs, rois) in counts.items()}
    assert len(set(work.values())) == 1, f"the sides have different work: {work}"
    timelines = {model: Timeline(model, setup.device) for model in {side.model for side in sides}}

    def subject(side: Side) -> Subject:
        return side.subject(lambda: timelines[side.model].parts(_predicts(side, images)))

    rounds = interleave([subject(side) for side in sides], setup.repeats, its_own_seconds, what="parts")
    rows = {}
    for side in sides:
        values = rounds[side.name]
        by_part = {part: seconds([value[part] for value in values]) for part in values[0]}
        rois, detections = work[side.name]
        rows[side.name] = {"norm": side.norm, "way": side.way, "rois": rois, "detections": detections, "parts": by_part}
    return {**setup.said(), "sides": rows}


def _give_all_the_same(sides: Sequence[Side], images: list[dict]) -> None:
    """Let the RPN and the box predictor of each model put out what those of the first one do, after their own work."""
    first: Any = sides[0].model
    outputs: dict[str, Any] = {}
    names = ("proposal_generator", "roi_heads.box_predictor")
    hooks = [
        first.get_submodule(name).register_forward_hook(lambda _, i, output, name=name: outputs.update({name: output}))
        for name in names
    ]
    _predicts(sides[0], images)()
    for hook in hooks:
        hook.remove()
    for model in {side.model for side in sides}:
        for name in names:
            model.get_submodule(name).register_forward_hook(lambda *_, name=name: outputs[name])


def _predicts(side: Side, images: list[dict]) -> Callable[[], list]:
    """Does what is timed, and returns the ``Instances`` of each image."""
    inputs = [{"image": image["image"]} for image in images]

    def run() -> list:
        with torch.no_grad(), side.precision():
            return [output["instances"] for output in side.model(inputs)]

    return run


def _with_rois(model: Any, run: Callable[[], list]) -> tuple[list, int]:
    """What ``run()`` returns, and how many RoIs the model proposed."""
    counts: list[int] = []

    def count(module: nn.Module, inputs: tuple, output: tuple) -> None:
        counts.append(sum(map(len, output[0])))

    hook = model.proposal_generator.register_forward_hook(count)
    try:
        return run(), counts[-1]
    finally:
        hook.remove()


def _described(side: Side, times: dict[str, list[float]]) -> dict:
    return {"norm": side.norm, "way": side.way, **seconds(times[side.name])}


def _kind(setup: Setup) -> str:
    return "cuda" if setup.device.startswith("cuda") else "cpu"


def comparisons(sides: Sequence[Side], times: dict[str, list[float]]) -> dict:
    """{"ratios": {name of a side with GN: stock / it}, "above": {way: {norm: what GN takes over that norm}}}."""
    names = [side.name for side in sides if side.norm == "GN" and side.way != "stock"] if STOCK in times else []
    above: dict[str, dict] = {}
    for side in sides:
        gn = side_name("GN", side.way)
        if side.norm != "GN" and gn in times:
            above.setdefault(side.way, {})[side.norm] = ratio(times[gn], times[side.name])
    return {"ratios": {name: ratio(times[STOCK], times[name]) for name in names}, "above": above}
