#!/usr/bin/env python
"""The same as ``gn-det benchmark``: time gn_det beside stock detectron2."""

from gn_det.cli.benchmark import cli
from gn_det.launch.tool import run_tool

if __name__ == "__main__":
    run_tool(cli)
