#!/usr/bin/env python
"""The same as ``gn-det zoo``: list published weights, and fetch them."""

from gn_det.cli.zoo import cli
from gn_det.launch.tool import run_tool

if __name__ == "__main__":
    run_tool(cli)
