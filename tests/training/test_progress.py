"""Progress bar on a stand-in for a terminal."""

import contextlib
import io
import logging

import pytest
from detectron2.utils.events import CommonMetricPrinter, EventStorage

from gn_det.training.progress import ProgressBar, on_terminal
from helpers.terminal import Terminal


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    return Terminal()


@pytest.fixture
def log(terminal):
    """detectron2's logger, with handlers for the terminal and for a file; and that file."""
    printer, file = CommonMetricPrinter(30).logger, io.StringIO()
    logger = logging.getLogger(printer.name.rsplit(".utils", 1)[0])
    handlers = [logging.StreamHandler(terminal), logging.StreamHandler(file)]
    level, logger.handlers[:], old = logger.level, handlers, list(logger.handlers)
    logger.setLevel(logging.INFO)
    yield logger, file
    logger.handlers[:] = old
    logger.setLevel(level)


def train(terminal: Terminal, max_iter: int, iterations: range, after=lambda iteration, bar: None) -> None:
    """Call the bar like detectron2's trainer: after each iteration the evaluation (``after``), then the writers."""
    bar = ProgressBar(max_iter, images_per_iteration=4)
    with contextlib.redirect_stdout(terminal), EventStorage(iterations.start) as storage:
        for iteration in iterations:
            storage.iter = iteration
            storage.put_scalars(total_loss=2.5, loss_cls=0.75, loss_box_reg=0.5, time=0.4)
            storage.put_scalar("lr", 0.02, smoothing_hint=False)
            after(iteration, bar)
            bar.write()
        storage.iter += iterations.stop == max_iter
        bar.write()
        bar.close()


def test_bar_shows_all_values_and_stays_after_training(terminal):
    train(terminal, 30, range(30))
    *above, last = [line for line in terminal.screen() if line]
    assert not above and last.startswith("30/30 |")
    assert last.endswith("ETA 0:00:00  10.0 img/s  loss 2.500  lr 0.02  " + last.split("lr 0.02  ")[1])
    assert "ETA 0:00:11" in terminal.getvalue() and " GB" in last


@pytest.mark.parametrize("columns", [40, 80, 120, 200])
def test_bar_fits_the_width_and_leaves_out_the_least_important_values(terminal, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    train(terminal, 90000, range(29, 31))
    lines = [line for text in terminal.getvalue().split("\n") for line in text.split("\r")]
    assert max(map(len, lines)) < columns
    last = terminal.screen()[0]
    assert last.startswith("31/90000 |") and "ETA 9:59" in last
    assert ("lr 0.02" in last) == (columns >= 80) and ("box_reg 0.500" in last) == (columns >= 120)


def test_log_lines_appear_complete_above_the_bar(terminal, log):
    logger, file = log
    train(terminal, 30, range(30), lambda iteration, bar: logger.info(f"a message at {iteration}"))
    lines = [line for line in terminal.screen() if line]
    assert lines[:-1] == [f"a message at {iteration}" for iteration in range(30)] and lines[-1].startswith("30/30")
    assert file.getvalue().splitlines() == lines[:-1]
    logger.info("after the bar")
    assert terminal.screen()[-2] == "after the bar"


def test_metric_lines_of_detectron2_only_go_to_the_file(terminal, log):
    logger, file = log
    printer = CommonMetricPrinter(30)
    train(terminal, 30, range(30), lambda iteration, bar: iteration % 10 == 9 and printer.write())
    assert file.getvalue().count("total_loss: 2.5") == 3 and "total_loss" not in terminal.getvalue()
    printer.logger.info("a line after the bar")
    assert "a line after the bar" in terminal.getvalue()


def test_hidden_bar_returns_after_an_evaluation(terminal, log):
    logger, file = log
    printer = CommonMetricPrinter(30)

    def evaluate(iteration, bar):
        if iteration == 19:
            bar.hide()
            print("Evaluate annotation type *bbox*")  # pycocotools prints this
            logger.info("AP is 3")
            printer.write()

    train(terminal, 30, range(30), evaluate)
    first, second, last = [line for line in terminal.screen() if line]
    assert (first, second) == ("Evaluate annotation type *bbox*", "AP is 3") and last.startswith("30/30")
    assert "total_loss" in file.getvalue()


def test_bar_of_a_resumed_run_that_stops_early(terminal):
    train(terminal, 30, range(10, 12))
    (line,) = [line for line in terminal.screen() if line]
    assert line.startswith("12/30")


def test_bar_is_only_for_terminals_outside_of_ci(terminal, monkeypatch):
    with contextlib.redirect_stdout(terminal):
        assert on_terminal()
        for name, value in (("CI", "true"), ("TERM", "dumb")):
            with monkeypatch.context() as patch:
                patch.setenv(name, value)
                assert not on_terminal()
    with contextlib.redirect_stdout(io.StringIO()):
        assert not on_terminal()


def test_bar_is_shown_if_the_terminal_of_a_container_reports_0_lines(terminal, monkeypatch):
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda stream: (-1, -1))  # what tqdm makes of 0 lines
    train(terminal, 30, range(30))
    assert "\r1/30 |" in terminal.getvalue()
