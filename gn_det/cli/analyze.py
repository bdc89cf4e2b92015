"""Parameters, FLOPs, activations, memory and norms of a config's model, by part. Reads no weights and needs no GPU."""

import argparse
import json
from pathlib import Path

from ..config.files import load_config
from ..cost.model import analyze, image_size
from ..cost.tables import format_analysis
from ..errors import GNDetError


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--config", "--config-file", required=True, metavar="FILE", help="a config, or a shipped one's name"
    )
    parser.add_argument(
        "--size", metavar="HxW", help="image in pixels, or its short side (default: INPUT.MIN_SIZE_TEST)"
    )
    parser.add_argument("--batch", type=int, metavar="N", help="images a GPU in training (default: 1, 2, 4 and 8)")
    parser.add_argument("--by-layer", action="store_true", help="list the norm of every layer")
    parser.add_argument("--json", metavar="FILE", help="also write everything to this file")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys that differ")
    return parser.parse_args()


def cli() -> None:
    """Run the command with the arguments of the process."""
    args = arguments()
    cfg = load_config(args.config, args.opts)
    if args.batch is not None and args.batch < 1:
        raise GNDetError(f"--batch is {args.batch}; it is the number of images a GPU, and at least 1.")
    result = analyze(cfg, image_size(cfg, args.size), (args.batch,) if args.batch else (1, 2, 4, 8))
    print(format_analysis(result, args.by_layer))
    if args.json:
        try:
            Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
        except OSError as error:
            raise GNDetError(f"--json {args.json} cannot be written: {error.strerror}.") from None
