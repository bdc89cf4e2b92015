"""Count the parameters, FLOPs, activations, and memory of a config's model by part, and list its norms.

Needs neither weights nor a GPU.
"""

import argparse
import json
from pathlib import Path

from ..config.files import load_config
from ..cost.model import analyze, image_size
from ..cost.tables import format_analysis
from ..errors import GNDetError


def parse_arguments() -> argparse.Namespace:
    """Parse the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--config", "--config-file", required=True, metavar="FILE", help="path of a config, or name of a shipped one"
    )
    parser.add_argument(
        "--size", metavar="HxW", help="image size or its short side in pixels (default: INPUT.MIN_SIZE_TEST)"
    )
    parser.add_argument(
        "--batch-size",
        "--batch",
        dest="batch",
        type=int,
        metavar="N",
        help="images per GPU in training (default: tables for 1, 2, 4, and 8)",
    )
    parser.add_argument("--by-layer", action="store_true", help="list every normalization layer, not a summary by part")
    parser.add_argument("--json", metavar="FILE", help="also write all results to this file")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys to override")
    return parser.parse_args()


def cli() -> None:
    """Run the command with the arguments of the process."""
    args = parse_arguments()
    cfg = load_config(args.config, args.opts)
    if args.batch is not None and args.batch < 1:
        raise GNDetError(f"--batch-size is {args.batch}; the number of images per GPU must be at least 1.")
    result = analyze(cfg, image_size(cfg, args.size), (args.batch,) if args.batch else (1, 2, 4, 8))
    print(format_analysis(result, args.by_layer))
    if args.json:
        try:
            Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
        except OSError as error:
            raise GNDetError(f"--json {args.json} cannot be written: {error.strerror}.") from None
