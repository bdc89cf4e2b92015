"""Checks of error sentences."""

import pytest

from gn_det.errors import GNDetError


def error_sentence(call, *args, **kwargs) -> str:
    """Return the sentence of the GNDetError that a call raises, and check that it is one line."""
    with pytest.raises(GNDetError) as error:
        call(*args, **kwargs)
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence
