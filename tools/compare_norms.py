#!/usr/bin/env python
"""Same as ``gn-det norms``: train with each norm at each batch size, and compare the AP."""

from gn_det.cli.norms import cli
from gn_det.launch.tool import run_tool

if __name__ == "__main__":
    run_tool(cli)
