#!/usr/bin/env python
"""The same as ``gn-det norms``: train with each norm at each batch size, and compare their AP."""

from gn_det.cli.norms import cli
from gn_det.launch.tool import run_tool

if __name__ == "__main__":
    run_tool(cli)
