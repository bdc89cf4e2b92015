"""Config values that are NaN or infinite."""

import pytest

from gn_det.config.checks import check_config
from gn_det.config.files import load_config
from gn_det.config.finite import check_finite
from helpers.errors import error_sentence


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["SOLVER.BASE_LR", "MODEL.GN.EPS", "SOLVER.MOMENTUM", "TRAIN.STALL_MINUTES"])
def test_a_number_that_is_not_finite_is_refused(key, value):
    cfg = load_config("quickstart_R18_FPN_gn_scratch", [])
    cfg.merge_from_list([key, value])
    assert error_sentence(check_config, cfg) == f"{key} is {value}; it must be a finite number."


@pytest.mark.parametrize(
    ("key", "value"), [("MODEL.PIXEL_MEAN", [1.0, 1.0, float("nan")]), ("SOLVER.STEPS", (float("inf"),))]
)
def test_a_list_with_a_number_that_is_not_finite_is_refused(key, value):
    cfg = load_config("quickstart_R18_FPN_gn_scratch", [])
    cfg.merge_from_list([key, value])
    assert f"{key} is " in error_sentence(check_finite, cfg)


def test_the_default_config_is_finite():
    check_finite(load_config("mask_rcnn_R50_FPN_gn", []))
