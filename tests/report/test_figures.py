"""The training curves of a report."""

import numpy as np
import pytest

from gn_det.report import figures, training


def test_training_curves():
    rows = [
        {"iteration": n, "total_loss": 2.0 if n else 900.0, "loss_a": 1.0, "lr": 0.1, "time": 0.5} for n in range(99)
    ]
    drawings = {drawing.title: drawing for drawing in training.training_curves(rows)}
    assert list(drawings) == ["Total loss", "Loss terms", "Learning rate"]
    assert drawings["Total loss"].note == "Not shown: 1 value up to 900."
    assert training.training_curves([]) == []
    rows = [{"iteration": n, f"{name}/bbox/AP": 1.0} for n in (1, 2) for name in "ab"]
    (ap,) = training.training_curves(rows)
    assert [label for label, _ in ap.legend] == ["a box AP", "b box AP"]


def test_training_time():
    rows = [{"iteration": n, "time": 0.5} for n in (19, 39, 98)]
    assert training.seconds(rows) == pytest.approx(49.5) and training.seconds([]) is None


def test_points_of_a_long_curve_are_averaged():
    line = figures._thin_out(figures.Line("x", np.arange(2000.0), np.ones(2000)))
    assert len(line.x) == 500 and line.x[0] == 1.5 and set(line.y) == {1.0}
