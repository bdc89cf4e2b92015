"""A full disk, as /dev/full on Linux and as a limit of the size of files."""

import json
import logging
import os
import resource
import signal
import threading
from pathlib import Path

import pytest
from detectron2.engine import default_writers
from detectron2.utils.events import EventStorage

from gn_det.training.guards.disk import EventsWriter, MetricsWriter, tolerant, tolerate_log_errors


class Limit:
    """Limit of the size of files that this process can write, in bytes."""

    def __enter__(self):
        self.old, self.handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        return self

    def set(self, size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, self.old[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.old)
        signal.signal(signal.SIGXFSZ, self.handler)


def write(writer, storage, *iterations: int) -> None:
    for storage.iter in iterations:
        storage.put_scalar("total_loss", storage.iter / 7)
        writer.write()


def rows(path: Path) -> list[int]:
    return [json.loads(line)["iteration"] for line in path.read_text().splitlines()]


def test_metrics_keep_complete_lines_and_go_on_when_there_is_room(tmp_path, caplog):
    path = tmp_path / "metrics.json"
    writer = MetricsWriter(str(path))
    with EventStorage() as storage, Limit() as limit:
        write(writer, storage, 0, 1)
        limit.set(path.stat().st_size + 20)
        write(writer, storage, 2, 3)
        assert rows(path) == [0, 1]
        limit.set(10**6)
        write(writer, storage, 4)
        writer.close()
    assert rows(path) == [0, 1, 4]
    assert len(caplog.messages) == 1 and "metrics.json cannot be written (File too large)" in caplog.messages[0]


def test_events_are_given_up_after_one_warning(tmp_path, caplog, monkeypatch):
    shown = []  # exceptions of threads
    monkeypatch.setattr(threading, "excepthook", shown.append)
    writer = EventsWriter(str(tmp_path))
    with EventStorage() as storage, Limit() as limit:
        write(writer, storage, 0)
        writer._writer.flush()
        (path,) = tmp_path.glob("events*")
        good = path.read_bytes()
        limit.set(len(good))
        for iteration in range(1, 60):
            write(writer, storage, iteration)
            if iteration % 20 == 0 and not writer._failed:
                with pytest.raises(OSError, match="File too large"):
                    writer._writer.flush()
        storage.put_image("picture", 0)
        write(writer, storage, 60)
        writer.close()
        assert storage._vis_data == []
    assert path.read_bytes() == good and len(caplog.messages) == 1 and "TensorBoard events" in caplog.messages[0]
    assert shown == [] and threading.excepthook == shown.append


def test_the_writers_of_detectron2_are_replaced(tmp_path):
    printer, metrics, events = [tolerant(writer, tmp_path) for writer in default_writers(str(tmp_path), 5)]
    assert isinstance(metrics, MetricsWriter) and isinstance(events, EventsWriter)
    for writer in (metrics, events):
        writer.close()
    assert os.listdir(tmp_path) == ["metrics.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_file_that_cannot_be_written_is_said_once(capsys):
    with open("/dev/full", "w") as full:
        handler, log = logging.StreamHandler(full), logging.getLogger("gn_det.test_disk")
        log.addHandler(handler)
        try:
            tolerate_log_errors()
            log.error("one")
            log.error("two")
        finally:
            log.removeHandler(handler)
            full.buffer.raw.close()
    assert capsys.readouterr().err == "warning: /dev/full cannot be written (No space left on device).\n"
