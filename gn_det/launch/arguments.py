"""Command-line arguments of a run: detectron2's, and those for your own data."""

import argparse
from collections.abc import Collection

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser

from ..config.files import load_config
from ..errors import GNDetError

# Attribute of an argument -> help text or metavar that replaces detectron2's.
_HELP = {
    "config_file": "path of a config file, or name of a shipped config (mask_rcnn_R50_FPN_gn)",
    "resume": "continue from the last checkpoint in OUTPUT_DIR",
    "eval_only": "evaluate the model and do not train it",
    "num_gpus": "number of processes per machine, one per GPU (default: 1)",
    "num_machines": "number of machines (default: 1)",
    "machine_rank": "rank of this machine, from 0 (default: 0)",
    "dist_url": "address of machine 0 for --num-machines above 1, such as tcp://HOST:PORT",
    "opts": "config keys to override",
}
_METAVARS = {"num_gpus": "N", "num_machines": "N", "machine_rank": "N", "dist_url": "URL", "opts": "KEY VALUE"}


def argument_parser(description: str, hidden: Collection[str] = ()) -> argparse.ArgumentParser:
    """Return detectron2's argument parser with ``--config`` and flags for your own data.

    Args:
        description: text at the top of the help.
        hidden: attributes of the arguments to leave out of the help, because the command ignores them.
    """
    parser = default_argument_parser(epilog="KEY VALUE pairs at the end override the config: SOLVER.BASE_LR 0.01")
    parser.description = description
    for action in parser._actions:
        action.help = argparse.SUPPRESS if action.dest in hidden else _HELP.get(action.dest, action.help)
        action.metavar = _METAVARS.get(action.dest, action.metavar)
    parser.add_argument("--config", dest="config_file", metavar="FILE", help="same as --config-file")
    own = parser.add_argument_group("your own data, in COCO format; the class names and NUM_CLASSES are taken from it")
    own.add_argument("--train-json", metavar="JSON", help="annotation file of the training images")
    own.add_argument("--train-images", metavar="DIR", help="folder of the training images")
    own.add_argument("--val-json", metavar="JSON", help="annotation file of the validation images")
    own.add_argument("--val-images", metavar="DIR", help="folder of the validation images")
    return parser


def config_from_args(args: argparse.Namespace) -> CfgNode:
    """Load the config of the parsed arguments and apply their overrides.

    Raises:
        GNDetError: if the arguments name no config, or as for :func:`gn_det.config.files.load_config`.
    """
    if not args.config_file:
        raise GNDetError("No config is given: pass one, for example --config configs/mask_rcnn_R50_FPN_gn.yaml.")
    return load_config(args.config_file, args.opts)


def parse_numbers(text: str) -> list[int]:
    """Parse an argument such as "1,2,4"; argparse prints the error."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be integers separated by commas, such as 1,2,4") from None
