#!/usr/bin/env python
"""Same as ``gn-det benchmark``: compare the speed and memory of gn_det and stock detectron2."""

from gn_det.cli.benchmark import cli
from gn_det.launch.tool import run_tool

if __name__ == "__main__":
    run_tool(cli)
