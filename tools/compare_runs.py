#!/usr/bin/env python
"""Same as ``gn-det compare``: compare the AP of runs in a table and a picture."""

from gn_det.cli.compare import cli
from gn_det.launch.tool import run_tool

if __name__ == "__main__":
    run_tool(cli)
