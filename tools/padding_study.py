#!/usr/bin/env python
"""The same as ``gn-det padding``: evaluate a trained model at several batch sizes, with and without the padding."""

from gn_det.cli.padding import cli
from gn_det.launch.tool import run_tool

if __name__ == "__main__":
    run_tool(cli)
