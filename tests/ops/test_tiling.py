"""The tiles of the Triton kernels, for the feature maps of detectors."""

import itertools

import pytest

from gn_det.ops import tiling
from gn_det.ops.tiling import Sizes, num_warps, power_of_two, split_tile, whole_tile

PROCESSORS = 132  # of an H200
# (stride, channels)
LEVELS = [(2, 64), (4, 64), (4, 256), (8, 128), (8, 512), (16, 256), (16, 1024), (32, 512), (32, 2048), (64, 256)]
# (channels, groups), common and uncommon ones
CHANNELS = [(64, 32), (96, 32), (48, 3), (256, 32), (2048, 32), (1024, 1), (1000, 1), (30, 30), (1, 1), (3, 3)]


def every_size(itemsize: int):
    for (channels, groups), pixels in itertools.product(CHANNELS, (1, 2, 49, 196, 950, 3800, 243200)):
        for samples, last in itertools.product((1, 2, 16, 1000), (False, True)):
            yield Sizes(samples, channels, pixels, groups, last, itemsize)


def is_power_of_two(number: int) -> bool:
    return number == power_of_two(number) > 0


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("tensors", [1, 2])
def test_whole_tiles_hold_each_group_once(itemsize, tensors):
    found = 0
    for sizes in every_size(itemsize):
        tile = whole_tile(sizes, tensors)
        if tile is None:
            continue
        found += 1
        assert is_power_of_two(tile.pixels) and tile.pixels >= sizes.pixels
        assert is_power_of_two(tile.channels) and tile.channels >= tile.block
        assert not tile.block % sizes.width and tile.elements * tensors <= tiling.MAX_ELEMENTS
        blocks, rest = divmod(tile.programs, sizes.samples)
        assert not rest and (blocks - 1) * tile.block < sizes.channels <= blocks * tile.block
        if sizes.channels_last and tile.block < sizes.channels:
            assert tile.block * itemsize >= tiling.SECTOR_BYTES
    assert found > 100


@pytest.mark.parametrize("itemsize", [2, 4])
def test_split_tiles_hold_each_pixel_once_without_empty_chunks(itemsize):
    for sizes in every_size(itemsize):
        tile = split_tile(sizes, PROCESSORS)
        assert is_power_of_two(tile.pixels) and is_power_of_two(tile.channels) and tile.elements <= tiling.TILE_ELEMENTS
        per_chunk = tile.pixels * tile.tiles
        assert (tile.chunks - 1) * per_chunk < sizes.pixels <= tile.chunks * per_chunk
        blocks, rest = divmod(tile.programs, sizes.samples * tile.chunks)
        assert not rest and (blocks - 1) * tile.channels < sizes.channels <= blocks * tile.channels
        assert not sizes.width % tile.piece and not tile.channels % tile.piece
        assert (tile.parts - 1) * tile.blocks_per_part < blocks <= tile.parts * tile.blocks_per_part
        assert tile.parts == 1 or not tile.blocks_per_part * tile.channels % sizes.width


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("level", LEVELS[:7])
def test_split_tiles_of_one_image_fill_the_gpu(level, last):
    stride, channels = level
    sizes = Sizes(1, channels, 800 * 1216 // stride**2, 32, last, 2)
    assert whole_tile(sizes, 1) is None
    programs = split_tile(sizes, PROCESSORS).programs
    assert PROCESSORS <= programs <= 4 * 4 * PROCESSORS * 1.1
    assert programs >= 3 * PROCESSORS or (stride, channels) in ((16, 256), (4, 64))


def test_rois_are_read_once():
    for pixels, last, tensors in itertools.product((49, 196), (False, True), (1, 2)):
        assert whole_tile(Sizes(1000, 256, pixels, 32, last, 2), tensors) is not None


@pytest.mark.parametrize("last", [False, True])
def test_statistics_are_a_small_share_of_memory_traffic(last):
    """Two 4-byte numbers are stored per channel and chunk; the map has 2 bytes per element."""
    for (stride, channels), samples in itertools.product(LEVELS, (1, 2, 16)):
        sizes = Sizes(samples, channels, 800 * 1216 // stride**2, 32, last, 2)
        if whole_tile(sizes, 1) is None:
            share = 8 * split_tile(sizes, PROCESSORS).chunks / (2 * sizes.pixels)
            assert share < (0.035 if stride <= 4 else 0.13), sizes


@pytest.mark.parametrize("last", [False, True])
def test_few_kernels_are_compiled_for_all_image_sizes(last):
    """Sides from 640 to 1344 pixels in steps of 32 give some 5,000 maps."""
    shapes = set()
    for height, width in itertools.product(range(640, 1345, 32), repeat=2):
        for stride, channels in LEVELS:
            sizes = Sizes(2, channels, -(-height // stride) * -(-width // stride), 32, last, 2)
            tile = whole_tile(sizes, 1) or split_tile(sizes, PROCESSORS)
            alignment = sizes.alignment(getattr(tile, "block", tile.channels))
            shapes.add((type(tile), tile.pixels, tile.channels, alignment))
    assert len(shapes) <= (4 if last else 12)


@pytest.mark.parametrize(("channels", "block", "pixels", "last", "itemsize", "alignment"), [
    (256, 64, 950, True, 2, 8), (256, 64, 950, True, 4, 4), (256, 64, 950, False, 2, 1), (256, 64, 49, False, 2, 1),
    (12, 12, 64, True, 2, 4), (96, 12, 64, True, 2, 4), (12, 12, 3800, False, 2, 8), (12, 12, 3796, False, 2, 4),
    (12, 12, 3800, False, 4, 4),
])  # fmt: skip
def test_alignment(channels, block, pixels, last, itemsize, alignment):
    assert Sizes(1, channels, pixels, 1, last, itemsize).alignment(block) == alignment


def test_values_that_are_read_one_at_a_time_are_spread_over_more_threads():
    tile = whole_tile(Sizes(512, 256, 49, 32, False, 4), 1)
    assert num_warps(tile, 1, alignment=1) == 4 * num_warps(tile, 1, alignment=4)
