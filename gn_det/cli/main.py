"""The entry point of ``gn-det``, which runs the module of the requested subcommand."""

import importlib
import sys
from pathlib import Path

from .. import __version__
from ..errors import GNDetError, did_you_mean
from ..launch.tool import run_tool

COMMANDS = {
    "train": "train a detector, or evaluate one with --eval-only",
    "predict": "detect objects in images and videos with a trained detector",
    "report": "write an HTML report of a run",
    "compare": "compare the AP of runs in a table and a picture",
    "norms": "train with each norm at each batch size, and compare the AP",
    "padding": "evaluate a trained model at several batch sizes, with and without the padding",
    "check": "check annotations, and write a repaired copy of them",
    "browse": "draw samples of a dataset, and check its annotations",
    "analyze": "count a model's parameters, FLOPs, activations, and memory",
    "evaluate": "compute the COCO AP of detections in a file",
    "zoo": "list and download the pretrained weights of the model zoo",
    "convert": "convert weights of another library to detectron2's names",
    "verify": "recompute a published AP from the published detections",
    "doctor": "show what is installed, what does not fit together, and the fix",
    "benchmark": "compare the speed and memory of gn_det and stock detectron2",
}


def main() -> None:
    """Run ``gn-det COMMAND ...`` and exit with the command's exit code, which is 2 for a user error."""
    run_tool(_dispatch)


def _dispatch() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(_help())
    elif name == "--version":
        print(f"gn_det {__version__}")
    elif name in COMMANDS:
        sys.argv = [f"{Path(sys.argv[0]).name} {name}", *sys.argv[2:]]
        importlib.import_module(f"{__package__}.{name}").cli()
    else:
        raise GNDetError(f"{name!r} is not a command{did_you_mean(name, list(COMMANDS))}.")


def _help() -> str:
    lines = [f"  {name:<11}{text}" for name, text in COMMANDS.items()]
    head = "usage: gn-det COMMAND ...\n\nGroup Normalization for object detection with detectron2.\n\ncommands:"
    return "\n".join([head, *lines, "\nRun 'gn-det COMMAND --help' for the arguments of a command."])
