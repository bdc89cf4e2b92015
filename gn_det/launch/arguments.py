"""The command line of a run: detectron2's arguments and those for one's own data."""

import argparse

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser

from ..config.files import load_config
from ..errors import GNDetError


def argument_parser(description: str) -> argparse.ArgumentParser:
    """detectron2's arguments, with ``--config`` for ``--config-file`` and the flags for one's own data."""
    parser = default_argument_parser(epilog="KEY VALUE pairs at the end override the config: SOLVER.BASE_LR 0.01")
    parser.description = description
    config = next(action for action in parser._actions if action.dest == "config_file")
    config.help = "path of a config, or name of a shipped one (mask_rcnn_R50_FPN_gn)"
    parser.add_argument("--config", dest="config_file", metavar="FILE", help="the same as --config-file")
    own = parser.add_argument_group("your own data, in COCO's format; classes and NUM_CLASSES follow from it")
    own.add_argument("--train-json", metavar="JSON", help="annotations to train on")
    own.add_argument("--train-images", metavar="DIR", help="the folder that its file_names are relative to")
    own.add_argument("--val-json", metavar="JSON", help="annotations to evaluate on")
    own.add_argument("--val-images", metavar="DIR", help="the folder of the validation images")
    return parser


def config_of(args: argparse.Namespace) -> CfgNode:
    """The config that the arguments name, with their overrides.

    Raises:
        GNDetError: none is named, or as :func:`gn_det.config.files.load_config`.
    """
    if not args.config_file:
        raise GNDetError("Name a config: --config configs/mask_rcnn_R50_FPN_gn.yaml")
    return load_config(args.config_file, args.opts)
