"""One run at a time writes into a folder."""

import os
import re
import signal
import subprocess
import sys

import pytest
from filelock import FileLock

from gn_det import GNDetError
from gn_det.launch.owner import owned

HOLD = """
import sys, time
from gn_det.launch.owner import owned
with owned(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_run_is_refused_until_the_first_ends(tmp_path):
    with owned(tmp_path):
        pattern = (
            rf"OUTPUT_DIR {re.escape(str(tmp_path))} is in use by another run \(process {os.getpid()} on .*, started 20"
        )
        with pytest.raises(GNDetError, match=pattern), owned(tmp_path):
            pass
    with owned(tmp_path):
        pass
    assert not (tmp_path / ".gn_det.owner.json").exists()


def test_lock_of_a_killed_process_does_not_block(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(GNDetError, match=f"process {process.pid} on"), owned(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with owned(tmp_path):
        pass


def test_damaged_description_of_the_owner_is_left_out(tmp_path):
    with owned(tmp_path):
        (tmp_path / ".gn_det.owner.json").write_text("[")
        with pytest.raises(GNDetError, match="is in use by another run: wait until it ends"), owned(tmp_path):
            pass


def test_folder_on_a_file_system_without_locks_is_not_locked(tmp_path, monkeypatch, caplog):
    def fail(self, timeout):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", fail)
    with caplog.at_level("WARNING"), owned(tmp_path):
        pass
    assert "cannot be locked (No locks available): start no other run in this folder" in caplog.text


def test_only_the_main_process_of_a_run_holds_the_lock(tmp_path, monkeypatch):
    with owned(tmp_path):
        monkeypatch.setattr("gn_det.launch.owner.comm.is_main_process", lambda: False)
        with owned(tmp_path):
            pass
