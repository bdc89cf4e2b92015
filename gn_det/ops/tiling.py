"""Compute from the sizes of a tensor how the Triton kernels divide it into tiles.

The size of the feature maps changes with every image. So nothing is tuned by running it, and no
kernel is compiled for one size: a kernel is compiled for the powers of two of a tile.

A tile is a block of pixels x channels of one sample.

Shapes: N samples, C channels in G groups, D = C / G channels per group (``width``), P = H * W
pixels.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

TILE_ELEMENTS = 4096  # elements per tile: 32 for each of 128 threads
MAX_ELEMENTS = 16384  # elements that a program can hold
SEGMENT_BYTES = 256  # contiguous bytes per pixel of a channels_last tile, if C is large enough
SECTOR_BYTES = 32  # the smallest number of bytes that the GPU reads at once
PROGRAMS_PER_PROCESSOR = 4  # about as many as run on a multiprocessor at once
# With enough work, up to this factor more programs than run at once: the last wave, which does not
# fill the GPU, is then a small share of the time.
MAX_WAVES = 4
# The smallest number of pixels per chunk, unless smaller chunks are needed to fill the GPU. The two
# numbers that are stored per chunk and channel are then a small share of the memory traffic.
CHUNK_PIXELS = 128


class Sizes(NamedTuple):
    """The sizes of a tensor (N, C, *) that determine its tiles."""

    samples: int
    channels: int
    pixels: int
    groups: int
    channels_last: bool
    itemsize: int

    @property
    def width(self) -> int:
        """D, the number of channels per group."""
        return self.channels // self.groups

    @property
    def alignment(self) -> int:
        """The largest power of two, up to 8, that divides the length of a row in memory.

        A thread can read this number of elements at once.
        """
        return math.gcd(self.channels if self.channels_last else self.pixels, 8)


@dataclass(frozen=True)
class WholeTile:
    """A tile with all pixels of some groups, so that x is read once. Its sizes are powers of two.

    Attributes:
        pixels: P or more.
        groups: the number of groups per tile.
        width: D or more.
        programs: the number of programs to launch.
    """

    pixels: int
    groups: int
    width: int
    programs: int

    @property
    def elements(self) -> int:
        """The number of elements per tile."""
        return self.pixels * self.groups * self.width


@dataclass(frozen=True)
class SplitTile:
    """A tile with a part of the pixels. A program processes one chunk of pixels of one channel block.

    Attributes:
        pixels: the number of pixels per tile, a power of two.
        channels: the number of channels per tile, a power of two.
        tiles: the number of tiles per chunk.
        chunks: the number of chunks per sample.
        programs: the number of programs to launch.
    """

    pixels: int
    channels: int
    tiles: int
    chunks: int
    programs: int

    @property
    def elements(self) -> int:
        """The number of elements per tile."""
        return self.pixels * self.channels


@functools.lru_cache(maxsize=4096)
def whole_tile(sizes: Sizes, tensors: int) -> WholeTile | None:
    """Return the tile for kernels that read x once.

    Args:
        tensors: the number of tensors of x's size that a program holds at once: 1 in the forward
            pass, 2 in the backward pass.

    Returns:
        None if a group is too large for a program, or if it would be read in pieces shorter than a
        sector.
    """
    pixels, width = power_of_two(sizes.pixels), power_of_two(sizes.width)
    group_elements = pixels * width
    group_bytes = width * sizes.itemsize  # per pixel
    max_elements, target_elements = MAX_ELEMENTS // tensors, TILE_ELEMENTS // tensors
    groups = 1
    # Take more groups while the contiguous pieces are short or the tile is small.
    while groups < sizes.groups and 2 * groups * group_elements <= max_elements:
        short = sizes.channels_last and 2 * groups * group_bytes <= SEGMENT_BYTES // 2
        if not short and 2 * groups * group_elements > target_elements:
            break
        groups *= 2
    wasteful = sizes.channels_last and groups < sizes.groups and groups * group_bytes < SECTOR_BYTES
    if groups * group_elements > max_elements or wasteful:
        return None
    return WholeTile(pixels, groups, width, sizes.samples * -(-sizes.groups // groups))


@functools.lru_cache(maxsize=4096)
def split_tile(sizes: Sizes, processors: int) -> SplitTile:
    """Return tiles and chunks with which a single sample fills the GPU.

    Args:
        processors: the number of multiprocessors of the GPU.
    """
    if sizes.channels_last:
        channels = _channels_per_tile(sizes.channels, SEGMENT_BYTES // sizes.itemsize)
        pixels = TILE_ELEMENTS // channels
    else:
        pixels = min(TILE_ELEMENTS // 4, max(32, power_of_two(sizes.pixels)))
        channels = min(TILE_ELEMENTS // pixels, power_of_two(sizes.channels))
    blocks, all_tiles = -(-sizes.channels // channels), -(-sizes.pixels // pixels)
    # The number of chunks per sample that fills the GPU.
    filling = -(-PROGRAMS_PER_PROCESSOR * processors // (sizes.samples * blocks))
    target = min(all_tiles, max(filling, min(MAX_WAVES * filling, all_tiles * pixels // CHUNK_PIXELS)))
    tiles = -(-all_tiles // target)
    chunks = -(-all_tiles // tiles)  # so that no chunk is empty
    return SplitTile(pixels, channels, tiles, chunks, sizes.samples * chunks * blocks)


def num_warps(tile: WholeTile | SplitTile, tensors: int) -> int:
    """Return the number of warps of a program with ``tensors`` tiles: 32 values per thread."""
    return min(16, max(1, tile.elements * tensors // 1024))


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below ``number``, which must be 1 or more."""
    return 1 << (number - 1).bit_length()


def _channels_per_tile(channels: int, most: int) -> int:
    """Return the channels per tile of a channels_last tensor.

    It is the largest power of two up to ``most`` that divides C, if that is 32 or more (96 = 3 * 32);
    else the next power of two above C.
    """
    divisor = math.gcd(channels, most)
    return divisor if divisor >= 32 else min(most, power_of_two(channels))
