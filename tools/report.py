#!/usr/bin/env python
"""The same as ``gn-det report``: write one HTML page about a run."""

from gn_det.cli.report import cli
from gn_det.launch.tool import run_tool

if __name__ == "__main__":
    run_tool(cli)
