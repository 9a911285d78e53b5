"""How a tensor is cut into tiles, and the tiles among programs: from its sizes alone, the same on every device.

So a result depends on no number of processors. The sizes of a tile are powers of two, as Triton wants them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

TILE = 4096  # elements of a tile: 16 a thread
ON_CHIP = 8192  # up to so many elements of a channel stay in registers, and the input is read once
PROGRAMS = 1024  # as many as a large GPU holds at a time
MOST_PARTS = 256  # whose moments one program merges
RUN = 64  # bytes that a channel, or neighbouring channels, are read by at least
THREADS = 32


class Slices(NamedTuple):
    """How many slices a batch has, the samples of a short one, how many have one more, the positions of a sample."""

    number: int
    short: int
    longer: int
    positions: int


class TilePlan(NamedTuple):
    """The sizes that kernels see, how a tensor is cut, and how many programs share a channel.

    n, c, s: (N, C, S); channels last: (1, C, all positions). unit_c, unit_s: powers of two that divide c and s, up to
    16 bytes of elements. rows, channels, columns: of a tile. tiles: how many a block of channels has, `each` a part.
    slices: None, or those of the batch; all else is of the longest then.
    """

    n: int
    c: int
    s: int
    last: bool
    unit_c: int
    unit_s: int
    rows: int
    channels: int
    columns: int
    tiles: int
    each: int
    parts: int
    slices: Slices | None = None

    @property
    def whole(self) -> bool:
        """Whether one tile holds all values of its channels."""
        return self.tiles == 1

    @property
    def grid(self) -> tuple[int, int]:
        return -(-self.c // self.channels) * (1 if self.slices is None else self.slices.number), self.parts

    @property
    def warps(self) -> int:
        """16 elements a thread: with 32, a channel that stays in registers spilled on sm_80."""
        elements = self.rows * self.channels * self.columns
        return min(16, max(1, elements // (16 * THREADS)))

    @property
    def sets(self) -> int:
        """How many sets of values have statistics of their own."""
        return self.c * (1 if self.slices is None else self.slices.number)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """What a launch passes: N, C and S in their units, and how many slices are longer (`slice_of`)."""
        n, s, longer = self.n, self.s, 0
        if self.slices is not None:
            _, n, longer, s = self.slices
        return n, self.c // self.unit_c, s // self.unit_s, longer

    @property
    def merge_grid(self) -> tuple[int]:
        """Of the programs that merge the parts."""
        return (-(-self.sets // self.merge_constants["BC"]),)

    @property
    def merge_constants(self) -> dict[str, int]:
        """What a merging kernel is compiled for."""
        parts = _power(self.parts)
        return {"PARTS": parts, "BC": max(8, min(_power(self.sets), 2048 // parts, 128))}

    @property
    def constants(self) -> dict[str, int | bool]:
        """What a kernel is compiled for."""
        return {
            "VC": self.unit_c, "VS": self.unit_s, "BN": self.rows, "BC": self.channels, "BS": self.columns,
            "LAST": self.last, "SLICED": self.slices is not None,
        }  # fmt: skip


def plan_tiles(input: Tensor, sizes: Sequence[int] = ()) -> TilePlan:
    """Of an input (N, C, *) that is contiguous or channels last, and not empty.

    sizes: how many samples each slice has, the longer ones first, by one.
    """
    n, c = int(input.shape[0]), int(input.shape[1])
    s = math.prod(int(size) for size in input.shape[2:])
    last = s == 1 or not input.is_contiguous()
    width, slices = 16 // input.element_size(), None
    if sizes:
        n, short = sizes[0], sizes[-1]
        slices = Slices(len(sizes), short, sum(size > short for size in sizes), s)
    if last:
        return _channels_last(c, n * s, math.gcd(c, width), input.element_size(), slices)
    return _planar(n, c, s, math.gcd(s, width), input.element_size(), slices)


def _channels_last(c: int, s: int, unit: int, size: int, slices: Slices | None) -> TilePlan:
    least = max(8, RUN // size)  # 8: a byte of bits
    columns = _power(s)
    if columns * least <= ON_CHIP:
        channels = least
    else:
        channels = max(least, min(_power(c), TILE // RUN))
        columns = min(columns, max(1, TILE // channels))
    return _cut(1, c, s, True, unit, 1, 1, channels, columns, slices)


def _planar(n: int, c: int, s: int, unit: int, size: int, slices: Slices | None) -> TilePlan:
    columns = max(8, _power(s))
    if _power(n) * columns <= ON_CHIP:
        rows = _power(n)
    else:
        if columns > 128:  # the least that is left empty at the end of a row; of equals the longest
            columns = min((1 << k for k in range(12, 6, -1)), key=lambda b: -(-s // b) * b)
        rows = max(1, min(_power(n), TILE // columns))
    channels = max(1, min(_power(c), TILE // (rows * columns), _power(RUN // (min(s, columns) * size))))
    return _cut(n, c, s, False, 1, unit, rows, channels, columns, slices)


def _cut(
    n: int, c: int, s: int, last: bool, unit_c: int, unit_s: int, rows: int, channels: int, columns: int,
    slices: Slices | None,
) -> TilePlan:  # fmt: skip
    tiles = -(-n // rows) * -(-s // columns)
    blocks = -(-c // channels) * (1 if slices is None else slices.number)
    each = -(-tiles // min(tiles, MOST_PARTS, max(1, PROGRAMS // blocks)))
    return TilePlan(n, c, s, last, unit_c, unit_s, rows, channels, columns, tiles, each, -(-tiles // each), slices)


def _power(size: int) -> int:
    """The power of two that is not below."""
    return 1 << max(0, size - 1).bit_length()
