"""gn_det beside stock detectron2 with the same weights, in one process and in turn: seconds, ratios and memory."""

import argparse

from ..benchmark.run import STAGES, benchmark


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--config", "--config-file", required=True, metavar="FILE", help="a config with GN, or a shipped one's name"
    )
    stages = ",".join(STAGES)
    parser.add_argument("--stage", default=stages, metavar="A,B", help=f"what to time (default: {stages})")
    parser.add_argument("--sides", metavar="A;B", help='as "stock;gn_det fp32" (default: all nine)')
    parser.add_argument("--size", default="800x1216", metavar="HxW", help="images in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, metavar="N", help="images at once (default: 1, in training and ops 2)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed rounds (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and images (default: %(default)s)")
    parser.add_argument("--device", metavar="cpu|cuda", help="default: cuda where there is one")
    parser.add_argument("--output", default="benchmark", metavar="DIR", help="for the record, tables and picture")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys that differ")
    return parser.parse_args()


def cli() -> None:
    """Run the command with the arguments of the process."""
    benchmark(arguments())
