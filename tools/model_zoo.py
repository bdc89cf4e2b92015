#!/usr/bin/env python
"""Same as ``gn-det zoo``: list and download the pretrained weights of the model zoo."""

from gn_det.cli.zoo import cli
from gn_det.launch.tool import run_tool

if __name__ == "__main__":
    run_tool(cli)
