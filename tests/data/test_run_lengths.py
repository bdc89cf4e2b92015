"""The pixels of run-length masks are counted as the COCO API decodes them."""

import numpy as np
import pytest
from pycocotools import mask as mask_util

from gn_det.data.run_lengths import count_pixels


def encode(mask: np.ndarray) -> str:
    return mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def test_pixels_of_masks_of_all_kinds():
    rng = np.random.default_rng(0)
    shapes = [(int(h), int(w)) for h, w in rng.integers(1, 300, (60, 2))] + [(1, 1), (4000, 3000)]
    masks = [rng.random(shape) < rng.random() for shape in shapes[:40]]
    masks += [np.zeros(shape) for shape in shapes[40:50]] + [np.ones(shape) for shape in shapes[50:]]
    for number, mask in enumerate(masks[:20]):  # blobs, with long runs
        mask[:] = False
        mask[number : 3 * number, 2 : 5 * number] = True
    texts = [encode(mask) for mask in masks]
    assert count_pixels(texts).tolist() == [h * w for h, w in shapes]
    assert count_pixels(texts[:1]).tolist() == [shapes[0][0] * shapes[0][1]]


def test_no_masks():
    assert count_pixels([]).tolist() == []


@pytest.mark.parametrize("text", ["", "b'PPYo1'", "P", "é", "PPPPPPPPPPPPPPPPPPP1", "2 3 4", "3L4"])
def test_text_that_is_not_run_lengths(text):
    good = encode(np.ones((3, 4)))
    assert count_pixels([good, text, good]).tolist() == [12, -1, 12]
    assert count_pixels([text]).tolist() == [-1]


def test_changed_run_lengths_have_another_number_of_pixels():
    text = encode(np.arange(600).reshape(20, 30) % 7 < 3)
    assert count_pixels([text[:-1]])[0] != 600
    assert count_pixels([text + text[-2:]])[0] != 600
