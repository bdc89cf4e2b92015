import sys

import pytest

from gn_det.benchmark.gpu import process

# Answers commands without importing anything: "echo" returns its argument, "end" ends, "stall" does not answer.
WORKER = """
import faulthandler, json, os, signal, sys, time
faulthandler.register(signal.SIGUSR1, all_threads=False)
json.loads(sys.stdin.readline())
print(json.dumps({"warnings": []}), flush=True)
def compile_slowly():
    time.sleep(60)
for line in sys.stdin:
    command = json.loads(line)
    if command["do"] == "end":
        sys.exit("no kernel image is available")
    if command["do"] == "stall":
        compile_slowly()
    reply = {"error": "ValueError: no"} if command["do"] == "fail" else {"result": [command, os.environ["GN_DET_OPS"]]}
    print(json.dumps(reply | {"warnings": ["slow kernels"]}), flush=True)
"""


@pytest.fixture
def worker(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "_WORKER", [sys.executable, "-c", WORKER])
    worker = process.Process({}, {"GN_DET_OPS": "native"}, tmp_path, tmp_path / "log")
    yield worker
    worker.close()


def test_call_returns_the_result_or_the_error_and_keeps_the_warnings(worker):
    worker.wait_until_ready(20)
    assert worker.call(20, "echo", batch=2) == ([{"do": "echo", "batch": 2}, "native"], None)
    assert worker.call(20, "fail") == (None, "ValueError: no")
    assert worker.failure is None and worker.warnings == ["slow kernels"]


def test_a_process_that_does_not_answer_is_ended_and_its_place_in_the_code_is_named(worker):
    worker.wait_until_ready(20)
    _, error = worker.call(1, "stall")
    assert error == "did not answer within 1 s, in compile_slowly (<string>:7)"
    assert worker.call(20, "echo") == (None, error)
    assert worker._process.poll() is not None


def test_the_last_line_of_a_process_that_ends_is_the_reason(worker):
    worker.wait_until_ready(20)
    assert worker.call(20, "end") == (None, "ended with code 1: no kernel image is available")
    assert worker.call(20, "echo")[1] == worker.failure


def test_a_process_that_does_not_start_is_reported(worker):
    worker.wait_until_ready(0)
    assert worker.failure.startswith("did not start within 0 s") and worker.call(20, "echo")[1] == worker.failure
