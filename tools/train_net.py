#!/usr/bin/env python
"""Train a model, or with --eval-only evaluate one."""

from gn_det.launch import launch, run_tool
from gn_det.run import argument_parser
from gn_det.train_net import main


def cli():
    launch(main, argument_parser(__doc__).parse_args())


if __name__ == "__main__":
    run_tool(cli)
