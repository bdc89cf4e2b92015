"""How the Triton kernels cut a tensor into tiles: plain arithmetic on sizes.

A detector sees another size with every image. So nothing is tuned by running it, and no kernel is compiled for a size: what
it is compiled for are the powers of two of a tile.

A tile is pixels x channels of one sample. N samples, C channels in G groups, D = C / G; P pixels, H x W.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

LANES = 4096  # elements of a tile: 32 for each of 128 threads
HELD = 16384  # elements that a program can hold at most
SEGMENT = 256  # bytes of a channels_last tile that lie side by side, where C allows
SECTOR = 32  # bytes that are read even if fewer are asked for
FILL = 4  # programs for each multiprocessor: about as many as fit on it at once
WAVES = 4  # times that, where there is enough to do: the last programs are then few
CHUNK = 128  # pixels for two numbers of a channel's statistics, lest these be much of what is read and written


class Sizes(NamedTuple):
    """Of a tensor (N, C, *)."""

    samples: int
    channels: int
    pixels: int
    groups: int
    channels_last: bool
    itemsize: int

    @property
    def width(self) -> int:
        """D, the channels of a group."""
        return self.channels // self.groups

    @property
    def aligned(self) -> int:
        """The power of two up to 8 that divides the length of a row in memory: how many elements can be read at once."""
        return math.gcd(self.channels if self.channels_last else self.pixels, 8)


@dataclass(frozen=True)
class Whole:
    """A program holds all pixels of some groups, so that one read is enough. Its sizes are powers of two, P and D or above.

    Attributes:
        pixels: P.
        groups: groups of a tile.
        width: D.
        programs: the grid.
    """

    pixels: int
    groups: int
    width: int
    programs: int

    @property
    def lanes(self) -> int:
        """Elements of a tile."""
        return self.pixels * self.groups * self.width


@dataclass(frozen=True)
class Split:
    """The pixels of a sample are in ``chunks`` of ``tiles`` tiles, its channels in blocks; a program takes one of each.

    Attributes:
        pixels, channels: of a tile, powers of two.
        programs: the grid.
    """

    pixels: int
    channels: int
    tiles: int
    chunks: int
    programs: int

    @property
    def lanes(self) -> int:
        """Elements of a tile."""
        return self.pixels * self.channels


@functools.lru_cache(maxsize=4096)
def whole(sizes: Sizes, tensors: int) -> Whole | None:
    """Tiles for one pass, or None where a group is too large for it, or would be read in pieces shorter than a sector.

    Args:
        tensors: how many of x's size a program holds at once: 1 forward, 2 backward.
    """
    rows, width = power_of_two(sizes.pixels), power_of_two(sizes.width)
    group, most, enough = rows * width, HELD // tensors, LANES // tensors
    row = width * sizes.itemsize  # bytes
    number = 1  # of groups: more where what lies side by side is short, or the tile small
    while number < sizes.groups and 2 * number * group <= most:
        short = sizes.channels_last and 2 * number * row <= SEGMENT // 2
        if not short and 2 * number * group > enough:
            break
        number *= 2
    pieces = sizes.channels_last and number < sizes.groups and number * row < SECTOR
    if number * group > most or pieces:
        return None
    return Whole(rows, number, width, sizes.samples * -(-sizes.groups // number))


@functools.lru_cache(maxsize=4096)
def split(sizes: Sizes, processors: int) -> Split:
    """Tiles and chunks, such that one sample fills the GPU.

    Args:
        processors: its multiprocessors.
    """
    if sizes.channels_last:
        channels = _side_by_side(sizes.channels, SEGMENT // sizes.itemsize)
        pixels = LANES // channels
    else:
        pixels = min(LANES // 4, max(32, power_of_two(sizes.pixels)))
        channels = min(LANES // pixels, power_of_two(sizes.channels))
    blocks, all_tiles = -(-sizes.channels // channels), -(-sizes.pixels // pixels)
    fill = -(-FILL * processors // (sizes.samples * blocks))  # chunks of a sample that fill the GPU
    wanted = min(all_tiles, max(fill, min(WAVES * fill, all_tiles * pixels // CHUNK)))
    tiles = -(-all_tiles // wanted)
    chunks = -(-all_tiles // tiles)  # of which none is empty
    return Split(pixels, channels, tiles, chunks, sizes.samples * chunks * blocks)


def warps(tile: Whole | Split, tensors: int) -> int:
    """Of a program that holds ``tensors`` of x's size: 32 values for each of a warp's 32 threads."""
    return min(16, max(1, tile.lanes * tensors // 1024))


def power_of_two(number: int) -> int:
    """The first at or above a number of at least 1."""
    return 1 << (number - 1).bit_length()


def _side_by_side(channels: int, most: int) -> int:
    """Channels of a tile: a divisor of C unless that is small (96 is 3 x 32), else the power of two above C."""
    divisor = math.gcd(channels, most)
    return divisor if divisor >= 32 else min(most, power_of_two(channels))
