#!/usr/bin/env python
"""Same as ``gn-det check``: check annotations, and write a repaired copy of them."""

from gn_det.cli.check import cli
from gn_det.launch.tool import run_tool

if __name__ == "__main__":
    run_tool(cli)
