#!/usr/bin/env python
"""Same as ``gn-det predict``: detect objects in images and videos with a trained detector."""

from gn_det.cli.predict import cli
from gn_det.launch.tool import run_tool

if __name__ == "__main__":
    run_tool(cli)
