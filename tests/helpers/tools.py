"""Run a tool in a new process."""

import os
import subprocess
import sys
from pathlib import Path

from .paths import TOOLS


def run_tool(*arguments: object, tool: str = "train_net.py") -> subprocess.CompletedProcess:
    """Run a file of ``tools/`` and return its exit code and output."""
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    # Hide all GPUs, so that messages about devices are the same on every machine.
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})


def own_data(data: Path) -> list:
    """Return the flags for data that ``gn_det.data.shapes.generate`` wrote into a folder."""
    flags = [("train-json", "train.json"), ("train-images", "train"), ("val-json", "val.json"), ("val-images", "val")]
    return [word for flag, path in flags for word in (f"--{flag}", data / path)]
