"""Compare the speed and memory of gn_det and stock detectron2.

Both run with the same weights in one process, in turn. The stage gpu compares more ways to run both on a GPU, with a
data loader, each in a process of its own.
"""

import argparse

from ..benchmark.gpu.plan import Plan
from ..benchmark.run import GPU, STAGES, benchmark
from ..launch.arguments import parse_numbers


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
    parser.add_argument("--stage", default=stages, metavar="A,B", help=f"stages to run (default: {stages}), or {GPU}")
    parser.add_argument(
        "--sides",
        "--candidates",
        metavar="A;B",
        help='models to time, such as "stock;gn_det fp32" (default: all)',
    )
    parser.add_argument("--size", default="800x1216", metavar="HxW", help="image size in pixels (default: %(default)s)")
    parser.add_argument(
        "--batch-size",
        "--batch",
        dest="batch",
        type=parse_numbers,
        metavar="N",
        help=f"images per batch (default: 2 in the stages training and ops, else 1; in {GPU} 2,16,8,1 for training)",
    )
    parser.add_argument("--repeats", type=int, metavar="N", help=f"timed rounds (default: 5; in {GPU} {Plan.rounds})")
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
    gpu = parser.add_argument_group(f"stage {GPU}")
    gpu.add_argument("--train-json", metavar="JSON", help="annotations in COCO format (default: images are generated)")
    gpu.add_argument("--train-images", metavar="DIR", help="folder of the images")
    gpu.add_argument(
        "--minutes",
        type=float,
        default=Plan.minutes,
        metavar="N",
        help="limit for the whole stage; what does not fit is not measured (default: %(default)g)",
    )
    gpu.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help=f"seconds after which a model that does not answer is given up (default: {Plan.start_seconds:g} for the start "
        f"of a model that is not compiled, else {Plan.step_seconds:g})",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys to override")
    return parser.parse_args()


def cli() -> None:
    """Run the command with the arguments of the process."""
    benchmark(parse_arguments())
