"""Does GN help on this data, at this batch size? Train with each norm at each batch size, and compare their AP.

All else is equal; the learning rate follows the linear rule. An interrupted study goes on where it was when the same
command is given again; more norms, batch sizes or seeds can be added.
"""

import argparse

from ..errors import GNDetError
from ..experiments.norm_study import Study, plan
from ..launch.arguments import argument_parser


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError("numbers with commas between them are wanted") from None


def _weights(text: str) -> tuple[str, str]:
    norm, found, file = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError("NORM=FILE is wanted")
    return norm, file


def cli() -> None:
    """Run the command with the arguments of the process."""
    parser = argument_parser(__doc__)
    parser.add_argument("--norms", default="GN,BN,FrozenBN", help="of the whole model (default: GN,BN,FrozenBN)")
    parser.add_argument("--batch-size", type=_numbers, default=[1, 2, 4], metavar="N,N", help="images (default: 1,2,4)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each, with seeds 1, 2, ... (default: 1)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (default: 1)")
    parser.add_argument(
        "--weights", type=_weights, action="append", default=[], metavar="NORM=FILE", help="where to start with a norm"
    )
    args = parser.parse_args()
    study = Study(args, plan(args.norms.split(","), args.batch_size, args.seeds), dict(args.weights))
    failures = study.run(args.jobs)
    for path in study.report():
        print(path.read_text() if path.suffix == ".md" else f"Picture: {path}")
    if failures:
        raise GNDetError(f"{len(failures)} of the trainings failed, the first by: {failures[0]}")
