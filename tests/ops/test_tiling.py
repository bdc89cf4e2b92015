"""The tiles of the Triton kernels, on the sizes of detectors."""

import itertools

import pytest

from gn_det.ops import tiling
from gn_det.ops.tiling import Sizes, power_of_two, split, warps, whole

PROCESSORS = 132  # of an H200
LEVELS = [(2, 64), (4, 64), (4, 256), (8, 128), (8, 512), (16, 256), (16, 1024), (32, 512), (32, 2048), (64, 256)]
# (channels, groups), common ones and not
CHANNELS = [(64, 32), (96, 32), (48, 3), (256, 32), (2048, 32), (1024, 1), (1000, 1), (30, 30), (1, 1), (3, 3)]


def every_size(itemsize: int):
    for (channels, groups), pixels in itertools.product(CHANNELS, (1, 2, 49, 196, 950, 3800, 243200)):
        for samples, last in itertools.product((1, 2, 16, 1000), (False, True)):
            yield Sizes(samples, channels, pixels, groups, last, itemsize)


def is_power(number: int) -> bool:
    return number == power_of_two(number) > 0


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("tensors", [1, 2])
def test_one_pass_holds_each_group_once(itemsize, tensors):
    found = 0
    for sizes in every_size(itemsize):
        tile = whole(sizes, tensors)
        if tile is None:
            continue
        found += 1
        assert is_power(tile.pixels) and tile.pixels >= sizes.pixels
        assert is_power(tile.width) and tile.width >= sizes.width
        assert is_power(tile.groups) and tile.lanes * tensors <= tiling.HELD
        blocks, rest = divmod(tile.programs, sizes.samples)
        assert not rest and (blocks - 1) * tile.groups < sizes.groups <= blocks * tile.groups
        if sizes.channels_last and tile.groups < sizes.groups:
            assert tile.groups * tile.width * itemsize >= tiling.SECTOR
    assert found > 100


@pytest.mark.parametrize("itemsize", [2, 4])
def test_chunks_hold_each_pixel_once_and_none_is_empty(itemsize):
    for sizes in every_size(itemsize):
        tile = split(sizes, PROCESSORS)
        assert is_power(tile.pixels) and is_power(tile.channels) and tile.lanes <= tiling.LANES
        per_chunk = tile.pixels * tile.tiles
        assert (tile.chunks - 1) * per_chunk < sizes.pixels <= tile.chunks * per_chunk
        blocks, rest = divmod(tile.programs, sizes.samples * tile.chunks)
        assert not rest and (blocks - 1) * tile.channels < sizes.channels <= blocks * tile.channels


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("level", LEVELS[:7])
def test_one_image_fills_the_gpu(level, last):
    stride, channels = level
    sizes = Sizes(1, channels, 800 * 1216 // stride**2, 32, last, 2)
    assert whole(sizes, 1) is None
    programs = split(sizes, PROCESSORS).programs
    assert PROCESSORS <= programs <= 4 * 4 * PROCESSORS * 1.1
    assert programs >= 3 * PROCESSORS or (stride, channels) in ((16, 256), (4, 64))


def test_rois_take_one_pass():
    for pixels, last, tensors in itertools.product((49, 196), (False, True), (1, 2)):
        assert whole(Sizes(1000, 256, pixels, 32, last, 2), tensors) is not None


@pytest.mark.parametrize("last", [False, True])
def test_what_is_written_for_statistics_is_little(last):
    """Two numbers of 4 bytes for each channel of each chunk, beside the map in 2 bytes."""
    for (stride, channels), samples in itertools.product(LEVELS, (1, 2, 16)):
        sizes = Sizes(samples, channels, 800 * 1216 // stride**2, 32, last, 2)
        if whole(sizes, 1) is None:
            share = 8 * split(sizes, PROCESSORS).chunks / (2 * sizes.pixels)
            assert share < (0.035 if stride <= 4 else 0.13), sizes


def test_few_kernels_serve_all_image_sizes():
    """Sides from 640 to 1344 pixels in steps of 32: of some 5,000 maps in each memory format, what is compiled in."""
    kernels = {False: set(), True: set()}
    for height, width in itertools.product(range(640, 1345, 32), repeat=2):
        for (stride, channels), last in itertools.product(LEVELS, (False, True)):
            sizes = Sizes(2, channels, -(-height // stride) * -(-width // stride), 32, last, 2)
            tile = whole(sizes, 1) or split(sizes, PROCESSORS)
            shape = (
                (tile.pixels, tile.channels) if hasattr(tile, "channels") else (tile.pixels, tile.groups, tile.width)
            )
            kernels[last].add((shape, sizes.aligned, warps(tile, 1)))
    assert len(kernels[True]) <= 8
    assert len(kernels[False]) <= 32


@pytest.mark.parametrize(("channels", "pixels", "last", "aligned"), [
    (256, 950, True, 8), (256, 950, False, 2), (256, 49, False, 1), (12, 64, True, 4), (12, 3800, False, 8),
])  # fmt: skip
def test_what_a_thread_can_read_at_once(channels, pixels, last, aligned):
    assert Sizes(1, channels, pixels, 1, last, 2).aligned == aligned
