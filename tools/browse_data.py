#!/usr/bin/env python
"""Draw samples of a data set as the model sees them, and say what it holds and what in it looks wrong."""

from gn_det.cli.browse import browse, browse_parser
from gn_det.launch.tool import run_tool


def cli():
    browse(browse_parser(__doc__).parse_args())


if __name__ == "__main__":
    run_tool(cli)
