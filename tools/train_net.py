#!/usr/bin/env python
"""Train a model, or with --eval-only evaluate one."""

from gn_det.launch.arguments import argument_parser
from gn_det.launch.processes import launch
from gn_det.launch.run import main
from gn_det.launch.tool import run_tool


def cli():
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--weights", metavar="FILE", help="MODEL.WEIGHTS: a path, a URL, or gn_det://NAME of the model zoo"
    )
    args = parser.parse_args()
    if args.weights:
        args.opts += ["MODEL.WEIGHTS", args.weights]
    launch(main, args)


if __name__ == "__main__":
    run_tool(cli)
