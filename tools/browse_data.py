#!/usr/bin/env python
"""Same as ``gn-det browse``: draw samples of a dataset, and check its annotations."""

from gn_det.cli.browse import cli
from gn_det.launch.tool import run_tool

if __name__ == "__main__":
    run_tool(cli)
