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

    def alignment(self, block: int) -> int:
        """Return the number of elements that a thread can read at once from a tile with ``block`` channels.

        It divides the length of a row in memory. It is 16 bytes, or half of that, or 1, so that few kernels
        are compiled.
        """
        length = math.gcd(self.channels, block) if self.channels_last else self.pixels
        most = max(1, 16 // self.itemsize)
        return next((n for n in (most, 4) if n <= most and length % n == 0), 1)


@dataclass(frozen=True)
class WholeTile:
    """A tile with all pixels of some groups, so that x is read once.

    Attributes:
        pixels: the number of pixels per tile, a power of four, P or more.
        channels: the number of channels per tile, a power of two, ``block`` or more.
        block: the number of channels that a program processes: those of one or more groups.
        programs: the number of programs to launch.
    """

    pixels: int
    channels: int
    block: int
    programs: int

    @property
    def elements(self) -> int:
        """The number of elements per tile."""
        return self.pixels * self.channels


@dataclass(frozen=True)
class SplitTile:
    """A tile with a part of the pixels. A program processes one chunk of pixels of one channel block.

    Attributes:
        pixels: the number of pixels per tile, a power of two.
        channels: the number of channels per tile, a power of two.
        tiles: the number of tiles per chunk.
        chunks: the number of chunks per sample.
        piece: the number of adjacent channels that are in one group and in one channel block.
        blocks_per_part: the number of adjacent channel blocks that have whole groups.
        parts: the number of such parts per sample.
        programs: the number of programs to launch.
    """

    pixels: int
    channels: int
    tiles: int
    chunks: int
    piece: int
    blocks_per_part: int
    parts: int
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
    pixels, width = _power_of_four(sizes.pixels), sizes.width
    scalar = not sizes.channels_last and sizes.alignment(sizes.channels) == 1  # see num_warps
    most, target = (elements // tensors // (2 if scalar else 1) for elements in (MAX_ELEMENTS, TILE_ELEMENTS))
    groups = 1
    # Take more groups while the contiguous pieces are short or the tile is small.
    while groups < sizes.groups and pixels * power_of_two(2 * groups * width) <= most:
        short = sizes.channels_last and 2 * groups * width * sizes.itemsize <= SEGMENT_BYTES // 2
        if not short and pixels * power_of_two(2 * groups * width) > target:
            break
        groups *= 2
    block = min(groups, sizes.groups) * width
    channels = power_of_two(block)
    wasteful = sizes.channels_last and block < sizes.channels and block * sizes.itemsize < SECTOR_BYTES
    if pixels * channels > most or wasteful:
        return None
    return WholeTile(pixels, channels, block, sizes.samples * -(-sizes.channels // block))


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
        pixels = TILE_ELEMENTS // 4 if sizes.pixels > TILE_ELEMENTS // 16 else TILE_ELEMENTS // 16
        channels = min(TILE_ELEMENTS // pixels, power_of_two(sizes.channels))
    blocks, all_tiles = -(-sizes.channels // channels), -(-sizes.pixels // pixels)
    # The number of chunks per sample that fills the GPU. More chunks would have more sums to combine.
    filling = -(-PROGRAMS_PER_PROCESSOR * processors // (sizes.samples * blocks))
    tiles = -(-all_tiles // min(all_tiles, filling))
    chunks = -(-all_tiles // tiles)  # so that no chunk is empty
    piece = math.gcd(sizes.width, channels)
    blocks_per_part = min(sizes.width // piece, blocks)
    parts = -(-blocks // blocks_per_part)
    return SplitTile(pixels, channels, tiles, chunks, piece, blocks_per_part, parts, sizes.samples * chunks * blocks)


def num_warps(tile: WholeTile | SplitTile, tensors: int, alignment: int) -> int:
    """Return the number of warps of a program with ``tensors`` tiles in registers.

    A thread has 32 values, or 8 if it reads them one at a time, because each of these needs an address.
    """
    values = 256 if alignment == 1 else 1024  # per warp
    return min(16, max(1, tile.elements * tensors // values))


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below ``number``, which must be 1 or more."""
    return 1 << (number - 1).bit_length()


def _power_of_four(number: int) -> int:
    power = power_of_two(number)
    return power if power.bit_length() % 2 else 2 * power


def _channels_per_tile(channels: int, most: int) -> int:
    """Return the channels per tile of a channels_last tensor.

    It is the largest power of two up to ``most`` that divides C, if that is 32 or more (96 = 3 * 32);
    else the next power of two above C.
    """
    divisor = math.gcd(channels, most)
    return divisor if divisor >= 32 else min(most, power_of_two(channels))
