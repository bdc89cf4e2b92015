"""The command ``gn-det``, and the scripts in tools/ that call the same modules."""

import importlib
import runpy
import subprocess
import sys

import pytest

from gn_det import __version__
from gn_det.cli import main as gn_det
from helpers.paths import REPO, TOOLS


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/gn-det", *arguments])
    code = 0
    try:
        gn_det.main()
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",)])
def test_help_lists_all_commands(monkeypatch, capsys, arguments):
    code, out, _ = run(monkeypatch, capsys, *arguments)
    assert code == 0 and all(f"\n  {name} " in out for name in gn_det.COMMANDS)


def test_version(monkeypatch, capsys):
    assert run(monkeypatch, capsys, "--version") == (0, f"gn_det {__version__}\n", "")


def test_unknown_command_is_one_sentence(monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, "trian")
    assert (code, out) == (2, "") and err == "error: 'trian' is not a command (did you mean 'train'?).\n"


def test_user_error_in_a_command_has_exit_code_2(monkeypatch, capsys, tmp_path):
    code, _, err = run(monkeypatch, capsys, "report", str(tmp_path / "none"))
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize("name", gn_det.COMMANDS)
def test_help_of_a_command_shows_its_name(monkeypatch, capsys, name):
    code, out, _ = run(monkeypatch, capsys, name, "--help")
    assert code == 0 and out.startswith(f"usage: gn-det {name} ")


def test_every_tool_calls_a_command_and_every_command_has_a_tool():
    clis = {path: runpy.run_path(str(path))["cli"] for path in TOOLS.glob("*.py")}
    modules = {importlib.import_module(f"gn_det.cli.{name}").cli for name in gn_det.COMMANDS}
    assert set(clis.values()) == modules
    for path in clis:
        assert path.stat().st_mode & 0o111, f"{path} is not executable"


def test_commands_that_train_nothing_do_not_import_training():
    names = ["compare", "convert", "evaluate", "report", "verify", "zoo"]
    imports = "; ".join(f"import gn_det.cli.{name}" for name in names)
    code = f"import sys; {imports}; print([m for m in sys.modules if m.startswith('gn_det.training')])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=REPO)
    assert done.stdout == "[]\n", done.stderr
