"""The page of all config keys."""

from gn_det.config.defaults import KEYS
from gn_det.config.page import keys_page
from helpers.paths import REPO


def test_page_is_up_to_date():
    assert (REPO / "docs" / "config_keys.md").read_text() == keys_page(), "run 'make pages'"


def test_page_has_a_row_for_each_key():
    rows = [line for line in keys_page().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == sorted((key.name for key in KEYS), key=_order)


def _order(name: str) -> int:
    return ("MODEL", "TRAIN", "GPU", "INFERENCE", "TEST").index(name.split(".")[0])
