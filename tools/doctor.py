#!/usr/bin/env python
"""Same as ``gn-det doctor``: show what is installed, and what does not fit together."""

import runpy
from pathlib import Path

try:
    from gn_det.cli.doctor import cli
except Exception:  # what this command is for: something that gn_det needs cannot be imported
    cli = runpy.run_path(str(Path(__file__).resolve().parents[1] / "gn_det" / "cli" / "doctor.py"))["cli"]

if __name__ == "__main__":
    cli()
