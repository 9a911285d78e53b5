"""How the groups of a tensor are cut into tiles, and the tiles among programs: from its sizes alone.

The samples are cut alike, each as a tensor (1, C, S); a program belongs to one sample.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from . import _tile_plan
from ._tile_plan import MOST_PARTS, RUN, THREADS
from ._tile_plan import _power as power

LEAST = 1024  # elements of a tile, where there are groups enough
MERGED = 1024  # sets of values that a merging program takes at a time


class GroupTilePlan(NamedTuple):
    """The sizes that kernels see, and how many programs share a channel of a sample.

    n, c, s: (N, C, S). unit_c, unit_s, unit_p: powers of two that divide C, S and the channels of a group, up to 16
    bytes of elements. members, groups: of a tile of whole groups; 0: a group is no tile. channels, columns: of any
    other tile. tiles: how many a block of channels has, `each` a part.
    """

    n: int
    c: int
    s: int
    g: int
    last: bool
    unit_c: int
    unit_s: int
    unit_p: int
    members: int
    groups: int
    channels: int
    columns: int
    each: int

    @property
    def per(self) -> int:
        """Channels of a group."""
        return self.c // self.g

    @property
    def whole(self) -> bool:
        """Whether one tile holds all values of its groups."""
        return self.groups > 0

    @property
    def tiles(self) -> int:
        return -(-self.s // self.columns)

    @property
    def parts(self) -> int:
        return 1 if self.whole else -(-self.tiles // self.each)

    @property
    def blocks(self) -> int:
        """Programs that share a sample, each with channels or groups of its own."""
        return -(-self.g // self.groups) if self.whole else -(-self.c // self.channels)

    @property
    def grid(self) -> tuple[int, int]:
        return self.n * self.blocks, self.parts

    @property
    def warps(self) -> int:
        """16 elements a thread, as `TilePlan` has it."""
        elements = (self.members * self.groups if self.whole else self.channels) * self.columns
        return min(16, max(1, elements // (16 * THREADS)))

    @property
    def sizes(self) -> tuple[int, ...]:
        """What a launch passes first: N, C and S in their units, and how the programs lie."""
        whole = (self.n, self.c // self.unit_c, self.s // self.unit_s, self.blocks)
        return whole if self.whole else (*whole, self.tiles, self.each)

    @property
    def group_sizes(self) -> tuple[int, int]:
        """The groups, and the channels of each, in whole tiles in their units."""
        return self.g, self.per // self.unit_p if self.whole else self.per

    @property
    def constants(self) -> dict[str, int | bool]:
        """What a kernel is compiled for."""
        cut = {"VP": self.unit_p, "BI": self.members, "BG": self.groups} if self.whole else {"BC": self.channels}
        return {"VC": self.unit_c, "VS": self.unit_s, **cut, "BS": self.columns, "LAST": self.last}

    @property
    def merge_constants(self) -> dict[str, int]:
        """What a kernel that merges a group's sets is compiled for."""
        return {"BK": min(MERGED, max(32, power(self.parts * self.per)))}

    @property
    def parameter_constants(self) -> dict[str, int]:
        """What the kernel of the parameters' gradients is compiled for."""
        return parameter_constants(self.n * self.parts)


def parameter_constants(rows: int) -> dict[str, int]:
    """What the kernel of the parameters' gradients is compiled for: 16 channels a program, or 64 bytes a row."""
    return {"BR": min(128, max(8, power(rows))), "BC": 16}


def plan_group_tiles(input: Tensor, num_groups: int) -> GroupTilePlan:
    """Of an input (N, C, *) that is contiguous or channels last, and not empty."""
    n, c = int(input.shape[0]), int(input.shape[1])
    s = math.prod(int(size) for size in input.shape[2:])
    size = input.element_size()
    last, per, width = s == 1 or not input.is_contiguous(), c // num_groups, 16 // size
    units = (math.gcd(c, width), 1, math.gcd(per, width)) if last else (1, math.gcd(s, width), 1)
    members, columns = power(per), power(s)
    if members * columns <= _tile_plan.ON_CHIP:
        run = per if last else s * per  # elements that lie together
        groups = max(power(-(-RUN // (run * size))), LEAST // (members * columns))
        groups = max(1, min(power(num_groups), _tile_plan.TILE // (members * columns), groups))
        return GroupTilePlan(n, c, s, num_groups, last, *units, members, groups, 0, columns, 0)
    if last:
        channels = min(power(c), max(8, _tile_plan.TILE // min(RUN, columns)))
        columns = min(columns, max(1, _tile_plan.TILE // channels))
    else:
        if columns > 128:  # the least that is left empty at the end of a row; of equals the longest
            columns = min((1 << k for k in range(12, 6, -1)), key=lambda b: -(-s // b) * b)
        channels = max(1, min(power(c), _tile_plan.TILE // columns))
    tiles, programs = -(-s // columns), n * -(-c // channels)
    each = -(-tiles // min(tiles, MOST_PARTS, max(1, _tile_plan.PROGRAMS // programs)))
    return GroupTilePlan(n, c, s, num_groups, last, *units, 0, 0, channels, columns, each)
