"""The hint that names the nearest known word."""

from gn_det.errors import did_you_mean


def test_did_you_mean_says_nothing_of_a_long_list():
    assert did_you_mean("zzz", [f"key{i}" for i in range(50)]) == ""
