"""The hint "did you mean" for an unknown word."""

from gn_det.errors import did_you_mean


def test_did_you_mean_is_empty_for_a_long_list():
    assert did_you_mean("zzz", [f"key{i}" for i in range(50)]) == ""
