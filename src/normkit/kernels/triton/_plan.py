"""How a tensor is cut into tiles, and the tiles among programs: from its sizes alone, the same on every device.

So a result depends on no number of processors. The sizes of a tile are powers of two, as Triton wants them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

TILE = 4096  # elements of a tile: 16 a thread
ON_CHIP = 8192  # up to so many elements of a channel stay in registers, and the input is read once
PROGRAMS = 1024  # as many as a large GPU holds at a time
MOST_PARTS = 256  # whose moments one program merges
RUN = 64  # bytes that a channel, or neighbouring channels, are read by at least
THREADS = 32


class Plan(NamedTuple):
    """The sizes that kernels see, how a tensor is cut, and how many programs share a channel.

    n, c, s: (N, C, S); channels last: (1, C, all positions). unit_c, unit_s: powers of two that divide c and s, up to
    16 bytes of elements. rows, channels, columns: of a tile. tiles: how many a block of channels has, `each` a part.
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

    @property
    def whole(self) -> bool:
        """Whether one tile holds all values of its channels."""
        return self.tiles == 1

    @property
    def grid(self) -> tuple[int, int]:
        return -(-self.c // self.channels), self.parts

    @property
    def warps(self) -> int:
        """16 elements a thread: with 32, a channel that stays in registers spilled on sm_80."""
        elements = self.rows * self.channels * self.columns
        return min(16, max(1, elements // (16 * THREADS)))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """What a launch passes: N, and C and S in their units."""
        return self.n, self.c // self.unit_c, self.s // self.unit_s

    @property
    def merge_grid(self) -> tuple[int]:
        """Of the programs that merge the parts."""
        return (-(-self.c // self.merge_constants["BC"]),)

    @property
    def merge_constants(self) -> dict[str, int]:
        """What a merging kernel is compiled for."""
        parts = _power(self.parts)
        return {"PARTS": parts, "BC": max(8, min(_power(self.c), 2048 // parts, 128))}

    @property
    def constants(self) -> dict[str, int | bool]:
        """What a kernel is compiled for."""
        return {
            "VC": self.unit_c, "VS": self.unit_s, "BN": self.rows, "BC": self.channels, "BS": self.columns,
            "LAST": self.last,
        }  # fmt: skip


def plan(input: Tensor) -> Plan:
    """Of an input (N, C, *) that is contiguous or channels last, and not empty."""
    n, c = int(input.shape[0]), int(input.shape[1])
    s = math.prod(int(size) for size in input.shape[2:])
    last = s == 1 or not input.is_contiguous()
    width = 16 // input.element_size()
    if last:
        return _channels_last(c, n * s, math.gcd(c, width), input.element_size())
    return _planar(n, c, s, math.gcd(s, width), input.element_size())


def _channels_last(c: int, s: int, unit: int, size: int) -> Plan:
    least = max(8, RUN // size)  # 8: a byte of bits
    columns = _power(s)
    if columns * least <= ON_CHIP:
        channels = least
    else:
        channels = max(least, min(_power(c), TILE // RUN))
        columns = min(columns, max(1, TILE // channels))
    return _cut(1, c, s, True, unit, 1, 1, channels, columns)


def _planar(n: int, c: int, s: int, unit: int, size: int) -> Plan:
    columns = max(8, _power(s))
    if _power(n) * columns <= ON_CHIP:
        rows = _power(n)
    else:
        if columns > 128:  # the least that is left empty at the end of a row; of equals the longest
            columns = min((1 << k for k in range(12, 6, -1)), key=lambda b: -(-s // b) * b)
        rows = max(1, min(_power(n), TILE // columns))
    channels = max(1, min(_power(c), TILE // (rows * columns), _power(RUN // (min(s, columns) * size))))
    return _cut(n, c, s, False, 1, unit, rows, channels, columns)


def _cut(
    n: int, c: int, s: int, last: bool, unit_c: int, unit_s: int, rows: int, channels: int, columns: int
) -> Plan:  # fmt: skip
    tiles = -(-n // rows) * -(-s // columns)
    blocks = -(-c // channels)
    each = -(-tiles // min(tiles, MOST_PARTS, max(1, PROGRAMS // blocks)))
    return Plan(n, c, s, last, unit_c, unit_s, rows, channels, columns, tiles, each, -(-tiles // each))


def _power(size: int) -> int:
    """The power of two that is not below."""
    return 1 << max(0, size - 1).bit_length()
