#!/usr/bin/env python
"""Same as ``gn-det train``: train a detector, or evaluate one with --eval-only."""

from gn_det.cli.train import cli
from gn_det.launch.tool import run_tool

if __name__ == "__main__":
    run_tool(cli)
