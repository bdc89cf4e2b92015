"""Read single values of JSON from other programs: numbers as text, flags of several kinds, ids."""

import json
import math
import sys
from typing import Any, TypeGuard

_MAX_SHOWN = 80  # characters of a value in a message
_FLAGS: dict[str, int] = {"": 0, "0": 0, "false": 0, "no": 0, "none": 0, "null": 0, "1": 1, "true": 1, "yes": 1}


def as_number(value: Any) -> int | float | None:
    """Return a finite number, also from text, as int if it is whole text or an int; None for anything else."""
    if type(value) is str:
        try:
            value = float(value) if any(c in value for c in ".eEnN") else int(value)
        except ValueError:
            return None
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return value
    return None


def as_whole(value: Any) -> int | None:
    """Return an int, also from text and from whole floats; None for anything else."""
    number = as_number(value)
    return int(number) if number is not None and number == int(number) else None


def as_id(value: Any) -> int | str | None:
    """Return an id: an int if the value is one in any form, other text as it is, None for anything else."""
    whole = as_whole(value)
    return whole if whole is not None else value if type(value) is str and value else None


def as_flag(value: Any) -> int | None:
    """Return 0 or 1 for what programs write for no and yes, such as null, "0", false and 1.0; else None."""
    if value is None or type(value) is bool:
        return int(bool(value))
    if type(value) is str:
        return _FLAGS.get(value.strip().lower())
    return int(value) if type(value) in (int, float) and value in (0, 1) else None


def is_numbers(values: Any) -> TypeGuard[list]:
    """Return whether a value is a list of finite numbers, which a float can hold."""
    if type(values) is not list or not set(map(type, values)) <= {int, float}:
        return False
    return -sys.float_info.max <= sum(values) <= sys.float_info.max


def as_numbers(values: Any) -> list | None:
    """Return a list of numbers, also from text; None if one of them is not a number."""
    numbers = [as_number(value) for value in values] if type(values) is list else [None]
    return None if None in numbers else numbers


def show(value: Any) -> str:
    """Return a value as JSON, so that text and numbers differ, shortened to 80 characters."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
