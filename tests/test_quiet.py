"""Commands print any name on any console."""

import os
import subprocess
import sys

import pytest

PRINT = r"""
import subprocess, sys
from gn_det.launch.tool import run_tool
from gn_det.errors import GNDetError
def main():
    print("\u82f9\u679c \udcff")
    subprocess.run([sys.executable, "-c", "print(chr(0x82f9))"], check=True)
    raise GNDetError("There is no \u82f9.")
run_tool(main)
"""


@pytest.mark.parametrize("changes", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C"}])
def test_names_are_printed_on_a_console_that_cannot_encode_them(changes):
    environ = {key: value for key, value in os.environ.items() if key not in ("PYTHONIOENCODING", "PYTHONUTF8")}
    environ |= {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", **changes}
    done = subprocess.run([sys.executable, "-c", PRINT], capture_output=True, env=environ)
    assert done.returncode == 2 and b"Traceback" not in done.stderr, done.stderr
    assert done.stdout.split() == [b"\\u82f9\\u679c", b"\\udcff", b"\\u82f9"]
    assert done.stderr.strip().endswith(b"error: There is no \\u82f9.")
