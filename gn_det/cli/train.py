"""Train a model, or evaluate one with --eval-only."""

from ..launch.arguments import argument_parser
from ..launch.processes import launch
from ..launch.run import main


def cli() -> None:
    """Run the command with the arguments of the process."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="weights to start from or to evaluate (MODEL.WEIGHTS): a path, a URL, or gn_det://NAME of the model zoo",
    )
    args = parser.parse_args()
    if args.weights:
        args.opts += ["MODEL.WEIGHTS", args.weights]
    launch(main, args)
