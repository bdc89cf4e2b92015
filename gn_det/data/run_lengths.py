"""Count the pixels of run-length masks without decoding them."""

from collections.abc import Sequence

import numpy as np

_CHUNK = 100  # masks at a time; more do not fit into the cache of a processor, and take longer
_MAX_CHARACTERS = 8  # of a number; 5 bits each


def count_pixels(counts: Sequence[str]) -> np.ndarray:
    """Return the number of pixels of each mask, inside and outside of the object.

    A mask fits an image if this number is the height times the width of the image.

    Args:
        counts: N compressed run lengths in the format of the COCO API.

    Returns:
        (N,) int64; -1 for text that is not in this format.
    """
    chunks = [_count(counts[start : start + _CHUNK]) for start in range(0, len(counts), _CHUNK)]
    return np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.int64)


def _count(counts: Sequence[str]) -> np.ndarray:
    valid = np.array([bool(text) and text.isascii() for text in counts])
    texts = [text.encode() if good else b"0" for text, good in zip(counts, valid, strict=True)]
    lengths = np.array([len(text) for text in texts])
    codes = np.frombuffer(b"".join(texts), dtype=np.uint8).astype(np.int64) - 48
    mask = np.repeat(np.arange(len(texts)), lengths)
    valid[mask[(codes < 0) | (codes > 63)]] = False
    last = codes & 32 == 0  # the last character of a number
    text_end = np.cumsum(lengths) - 1
    valid[~last[text_end]] = False
    last[text_end] = True
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    owner = mask[starts]
    valid[owner[sizes > _MAX_CHARACTERS]] = False
    shifts = 5 * np.minimum(np.arange(len(codes)) - np.repeat(starts, sizes), _MAX_CHARACTERS)
    numbers = np.add.reduceat((codes & 31) << shifts, starts)
    numbers -= np.where(codes[ends] & 16, 1, 0) << (5 * np.minimum(sizes, _MAX_CHARACTERS))  # the sign
    totals = _add_runs(numbers, owner, valid)
    return np.where(valid, totals, -1)


def _add_runs(numbers: np.ndarray, owner: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the sum of the runs of each mask, and mark masks with a negative run as not valid, in place.

    Args:
        numbers: the first number of a mask is its first run; so are the second and the third. Each number after that
            is the difference to the run two before.
        owner: the mask of each number, in ascending order.
        valid: (N,) of each mask.
    """
    first = np.searchsorted(owner, np.arange(len(valid)))
    index = np.arange(len(numbers)) - first[owner]
    totals = np.zeros(len(valid))
    for chosen in (index == 0, index % 2 == 1, (index % 2 == 0) & (index > 0)):
        values, of = numbers[chosen], owner[chosen]
        sums = np.cumsum(values)
        begins = np.flatnonzero(np.diff(of, prepend=-1))
        before = np.repeat((sums - values)[begins], np.diff(begins, append=len(of)))
        runs = sums - before
        valid[of[runs < 0]] = False
        totals += np.bincount(of, weights=runs, minlength=len(valid))
    return totals.astype(np.int64)
