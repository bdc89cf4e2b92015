#!/usr/bin/env python
"""The same as ``gn-det analyze``: count parameters, FLOPs, activations and memory by part."""

from gn_det.cli.analyze import cli
from gn_det.launch.tool import run_tool

if __name__ == "__main__":
    run_tool(cli)
