"""The command ``gn-det``: it dispatches to the module of each command."""

import importlib
import sys
from pathlib import Path

from .. import __version__
from ..errors import GNDetError, did_you_mean
from ..launch.tool import run_tool

COMMANDS = {
    "train": "train a detector, or evaluate one",
    "predict": "find objects in images and videos with a trained detector",
    "report": "write one HTML page about a run",
    "compare": "compare runs in a table and a picture",
    "norms": "train with each norm at each batch size, and compare their AP",
    "browse": "draw samples of a data set, and check its annotations",
    "analyze": "count parameters, FLOPs, activations and memory by part",
    "evaluate": "compute the COCO AP of detections in a file",
    "zoo": "list published weights, and fetch them",
    "convert": "convert weights of another library to detectron2's names",
    "verify": "recompute a published AP from the published detections",
    "benchmark": "time gn_det beside stock detectron2",
}


def main() -> None:
    """Run ``gn-det COMMAND ...``. The exit code is that of the command; 2 for a mistake of the user."""
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
        raise GNDetError(f"There is no command {name!r}{did_you_mean(name, list(COMMANDS))}.")


def _help() -> str:
    lines = [f"  {name:<11}{text}" for name, text in COMMANDS.items()]
    head = "usage: gn-det COMMAND ...\n\nGroup Normalization for object detection with detectron2.\n\ncommands:"
    return "\n".join([head, *lines, "\n'gn-det COMMAND --help' shows the arguments of a command."])
