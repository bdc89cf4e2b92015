"""Compare the speed and memory of gn_det and stock detectron2.

Both run with the same weights in one process, in turn.
"""

import argparse

from ..benchmark.run import STAGES, benchmark


def parse_arguments() -> argparse.Namespace:
    """Parse the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--config",
        "--config-file",
        required=True,
        metavar="FILE",
        help="path of a config with GN, or name of a shipped one",
    )
    stages = ",".join(STAGES)
    parser.add_argument("--stage", default=stages, metavar="A,B", help=f"stages to run (default: {stages})")
    parser.add_argument(
        "--sides",
        "--candidates",
        metavar="A;B",
        help='models to time, such as "stock;gn_det fp32" (default: all nine)',
    )
    parser.add_argument("--size", default="800x1216", metavar="HxW", help="image size in pixels (default: %(default)s)")
    parser.add_argument(
        "--batch-size",
        "--batch",
        dest="batch",
        type=int,
        metavar="N",
        help="images per batch (default: 2 in the stages training and ops, else 1)",
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed rounds (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the random weights and images (default: %(default)s)"
    )
    parser.add_argument("--device", metavar="cpu|cuda", help="(default: cuda if a GPU is available, else cpu)")
    parser.add_argument(
        "--output",
        default="benchmark",
        metavar="DIR",
        help="folder for the record, the tables, and the picture (default: %(default)s)",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys to override")
    return parser.parse_args()


def cli() -> None:
    """Run the command with the arguments of the process."""
    benchmark(parse_arguments())
