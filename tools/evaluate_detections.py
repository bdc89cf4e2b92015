#!/usr/bin/env python
"""Same as ``gn-det evaluate``: compute the COCO AP of detections in a file."""

from gn_det.cli.evaluate import cli
from gn_det.launch.tool import run_tool

if __name__ == "__main__":
    run_tool(cli)
