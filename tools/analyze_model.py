#!/usr/bin/env python
"""Same as ``gn-det analyze``: count a model's parameters, FLOPs, activations, and memory."""

from gn_det.cli.analyze import cli
from gn_det.launch.tool import run_tool

if __name__ == "__main__":
    run_tool(cli)
