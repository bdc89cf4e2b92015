"""Running a tool in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from .paths import TOOLS


def run_tool(*arguments: object, tool: str = "train_net.py") -> subprocess.CompletedProcess:
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    # Without a GPU, on every machine: what is said about devices is tested too.
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})


def own_data(data: Path) -> list:
    flags = [("train-json", "train.json"), ("train-images", "train"), ("val-json", "val.json"), ("val-images", "val")]
    return [word for flag, path in flags for word in (f"--{flag}", data / path)]
