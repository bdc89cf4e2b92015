#!/usr/bin/env python
"""Same as ``gn-det convert``: convert weights of another library to detectron2's names."""

from gn_det.cli.convert import cli
from gn_det.launch.tool import run_tool

if __name__ == "__main__":
    run_tool(cli)
