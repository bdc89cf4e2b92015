#!/usr/bin/env python
"""Same as ``gn-det report``: write an HTML report of a run."""

from gn_det.cli.report import cli
from gn_det.launch.tool import run_tool

if __name__ == "__main__":
    run_tool(cli)
