"""Each fault of the table, on gn_det. ``make faults`` also runs stock detectron2, and prints the table."""

import pytest

from .cases import CASES
from .lab import Shared, lab_in


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Shared:
    return Shared(tmp_path_factory.mktemp("faults"))


def marked(case):
    return pytest.param(case, id=str(case), marks=[] if case.fast else [pytest.mark.slow])


@pytest.mark.parametrize("case", [marked(case) for case in CASES])
def test_fault(case, shared):
    with lab_in(shared) as lab:
        case.run(lab)
