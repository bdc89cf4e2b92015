#!/usr/bin/env python
"""Same as ``gn-det verify``: recompute a published AP from the published detections."""

from gn_det.cli.verify import cli
from gn_det.launch.tool import run_tool

if __name__ == "__main__":
    run_tool(cli)
