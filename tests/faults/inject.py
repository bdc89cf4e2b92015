"""Faults inside a run: functions that a fork calls before the command starts.

They change classes of detectron2 and Python itself, so they do the same to gn_det and to stock detectron2.
"""

import builtins
import fnmatch
import io
import json
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage


def run_with_faults(program: str, words: list[str], faults: list[tuple]) -> None:
    """Run a Python file as the main program with faults.

    Args:
        faults: tuples of a function of this module and its arguments.
    """
    for function, *arguments in faults:
        function(*arguments)
    sys.argv = [program, *words]
    runpy.run_path(program, run_name="__main__")


def at_iteration(number: int, action: Callable[..., dict], *arguments: object) -> None:
    """Call ``action(losses, model, *arguments)`` after the forward pass of an iteration; it returns the new losses."""
    original = GeneralizedRCNN.forward

    def forward(self, batched_inputs):
        losses = original(self, batched_inputs)
        if self.training and get_event_storage().iter == number:
            return action(losses, self, *arguments)
        return losses

    GeneralizedRCNN.forward = forward


def at_evaluation(action: Callable[..., object], *arguments: object) -> None:
    """Call ``action(output, model, *arguments)`` after each forward pass of an evaluation; it returns the new output."""
    original = GeneralizedRCNN.forward

    def forward(self, batched_inputs):
        output = original(self, batched_inputs)
        return output if self.training else action(output, self, *arguments)

    GeneralizedRCNN.forward = forward


def send(result: object, model: object, number: int, times: int = 1, group: bool = False) -> object:
    """Send a signal to this process, or to its process group as a terminal does."""
    for _ in range(times):
        os.killpg(0, number) if group else os.kill(os.getpid(), number)
    return result


def send_twice_and_hang(result: object, model: object, number: int) -> object:
    """Send a signal twice, with the pause of a person, and do not come back for a minute."""
    os.kill(os.getpid(), number)
    time.sleep(3)
    os.kill(os.getpid(), number)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(0.1)
    return result


def spoil_loss(losses: dict, model: object, value: float) -> dict:
    """Make one loss NaN or infinite."""
    return losses | {"loss_box_reg": losses["loss_box_reg"] * value}


def spoil_gradient(losses: dict, model: torch.nn.Module) -> dict:
    """Make the gradient of one tensor NaN; the losses stay finite."""
    weight = next(p for p in model.parameters() if p.requires_grad)
    return losses | {"loss_cls": losses["loss_cls"] + (weight.sum() * 0).sqrt()}


def end_workers(result: object, model: object, number: int) -> object:
    """Send a signal to the data workers of this process, and wait until they feel it."""
    for child in multiprocessing.active_children():
        os.kill(child.pid, number)
    time.sleep(0.5)
    return result


def fail(result: object, model: object) -> object:
    """Raise an error."""
    raise RuntimeError("fault in this rank")


def trace_iterations(file: str) -> None:
    """Append a JSON line with the iteration and the names of its images for each training step."""
    original = GeneralizedRCNN.forward

    def forward(self, batched_inputs):
        if self.training:
            names = [Path(image["file_name"]).name for image in batched_inputs]
            with open(file, "a") as lines:
                lines.write(json.dumps([get_event_storage().iter, names]) + "\n")
        return original(self, batched_inputs)

    GeneralizedRCNN.forward = forward


def find_share(truth: str, shares: dict[int, float]) -> None:
    """Let evaluations find a share of the objects and nothing else, so that AP has a known order.

    Args:
        truth: COCO file of the test set.
        shares: share by the number of trained iterations.
    """
    rows = json.loads(Path(truth).read_text())["annotations"]

    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        ids = next(iter(MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id") for name in _datasets()))
        share = shares.get(get_event_storage().iter + 1, 0.0)
        chosen = rows[: max(1, round(share * len(rows)))]
        outputs = [_instances(image, chosen, ids) for image in batched_inputs]
        return outputs if do_postprocess else [output["instances"] for output in outputs]

    GeneralizedRCNN.inference = inference


def _datasets() -> list[str]:
    return [name for name in MetadataCatalog.list() if name.endswith("_val") and name.startswith(("own_", "stock_"))]


def _instances(image: dict, rows: list[dict], ids: dict[int, int]) -> dict:
    own = [r for r in rows if r["image_id"] == image["image_id"]]
    found = Instances((image["height"], image["width"]))
    boxes = torch.tensor([r["bbox"] for r in own]).reshape(-1, 4).float()
    found.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1))
    found.scores = torch.full((len(own),), 0.9)
    found.pred_classes = torch.tensor([ids[r["category_id"]] for r in own]).long()
    return {"instances": found}


def limit_file_size(size: int) -> None:
    """Let every write beyond this number of bytes fail, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def fill_disk(pattern: str) -> None:
    """Let Python write files with such a name to a full disk."""
    original = io.open

    def open_(file, mode="r", *args, **kwargs):
        named = not isinstance(file, int) and fnmatch.fnmatch(os.path.basename(os.fsdecode(file)), pattern)
        if named and any(letter in mode for letter in "wa"):
            return original("/dev/full", mode.replace("a", "w"), *args, **kwargs)
        return original(file, mode, *args, **kwargs)

    builtins.open = io.open = open_


def limit_memory(size: int) -> None:
    """Let this process have this number of bytes of memory more than now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, resource.RLIM_INFINITY))


def kill_at_operation(folder: str, number: int) -> None:
    """Kill this process before an operation on the files of a run.

    Operations are: open to write, rename, remove. They count from the first one on a checkpoint in this process, and only
    files directly in ``folder`` count, without logs and metrics.

    Args:
        number: of the operation, from 0.
    """
    skipped = ("log.txt*", "metrics.json*", "events.out*", ".metrics*", ".log*")
    operations = [0, False]
    root = os.path.abspath(folder)

    def watch(event: str, arguments: tuple) -> None:
        path = _written(event, arguments)
        if not path or os.path.dirname(os.path.abspath(path)) != root:
            return
        name = os.path.basename(path)
        operations[1] |= ".pth" in name
        if not operations[1] or any(fnmatch.fnmatch(name, pattern) for pattern in skipped):
            return
        if operations[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        operations[0] += 1

    sys.addaudithook(watch)


def _written(event: str, arguments: tuple) -> str:
    """Return the path that an audit event is about to write, rename or remove; else ""."""
    if event == "open":
        path, mode, flags = arguments
        writes = any(letter in mode for letter in "wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR)
        return os.fsdecode(path) if writes and not isinstance(path, int) else ""
    if event in ("os.rename", "os.link", "os.symlink"):
        return os.fsdecode(arguments[1])
    return os.fsdecode(arguments[0]) if event in ("os.remove", "os.truncate") else ""


def shorten_waits() -> None:
    """Shorten the pauses of downloads: their tests would take minutes otherwise."""
    from gn_det.download import transfer

    for name, value in (("FIRST_PAUSE", 0.01), ("LONGEST_PAUSE", 0.1), ("READ_TIMEOUT", 2.0)):
        if hasattr(transfer, name):
            setattr(transfer, name, value)
