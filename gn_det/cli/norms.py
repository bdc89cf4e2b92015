"""Train with each norm at each batch size, and compare the AP.

The study shows whether GN helps on your data at your batch size. Everything
else is equal, and the learning rate follows the linear scaling rule. To
continue an interrupted study, run the same command again; norms, batch sizes,
and seeds can be added.
"""

import argparse

from ..errors import GNDetError
from ..experiments.norm_study import Study, plan
from ..launch.arguments import argument_parser, parse_numbers


def _parse_weights(text: str) -> tuple[str, str]:
    norm, separator, file = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} must have the form NORM=FILE")
    return norm, file


def cli() -> None:
    """Run the command with the arguments of the process."""
    parser = argument_parser(__doc__, hidden=("resume", "eval_only"))
    parser.add_argument(
        "--norms", default="GN,BN,FrozenBN", metavar="NORM,NORM", help="norms to compare (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size",
        type=parse_numbers,
        default=[1, 2, 4],
        metavar="N,N",
        help="batch sizes to compare, in images (default: 1,2,4)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="trainings per norm and batch size, with seeds 1, 2, ..., N (default: 1)",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings that run in parallel (default: 1)")
    parser.add_argument(
        "--weights",
        type=_parse_weights,
        action="append",
        default=[],
        metavar="NORM=FILE",
        help="initial weights for a norm, instead of MODEL.WEIGHTS; can be repeated",
    )
    args = parser.parse_args()
    study = Study(args, plan(args.norms.split(","), args.batch_size, args.seeds), dict(args.weights))
    failures = study.run(args.jobs)
    for path in study.report():
        print(path.read_text() if path.suffix == ".md" else f"Picture: {path}")
    if failures:
        raise GNDetError(f"{len(failures)} of the trainings failed; the first failure is: {failures[0]}")
