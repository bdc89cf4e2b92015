"""Generated shapes, a run on them, and its report."""

from pathlib import Path

import pytest

from gn_det.data import shapes
from gn_det.data.coco import read_annotations
from gn_det.report import write_report
from helpers.reports import NAME, SIDE, jittered, make_run, unregister


@pytest.fixture(autouse=True)
def unregistered():
    """No test registers the dataset for the next one."""
    yield
    unregister(NAME)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A folder of generated shapes."""
    root = tmp_path_factory.mktemp("report") / "shapes"
    shapes.generate(root, num_train=1, num_val=6, seed=4, size=SIDE)
    return root


@pytest.fixture(scope="session")
def hostile_names() -> tuple[str, ...]:
    """Class names that would break a page that does not escape them."""
    return "<script>alert(1)</script>", "</style><img src=http://x.example/a.png>", "$\\frac{1}$ é 苹果 " + "w" * 300


@pytest.fixture(scope="session")
def full_run(data, hostile_names, tmp_path_factory) -> Path:
    """A run with everything that a report shows."""
    rows = jittered(read_annotations(data / "val.json"))
    return make_run(tmp_path_factory.mktemp("page") / "out", data, rows, images=True, names=hostile_names)


@pytest.fixture(scope="session")
def page(full_run) -> str:
    """The report of this run."""
    path = write_report(full_run)
    assert path == full_run / "report.html" and list(full_run.glob(".*")) == []
    unregister(NAME)
    return path.read_text()
