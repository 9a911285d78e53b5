"""The fewest bytes that an operation can move: each tensor once over the bus, the statistics' second look from cache.

In units of one tensor: a norm reads x and writes y (2), its backward reads x and dy and writes dx (3); an added
residual is one more read forward, its gradient one more write backward, and the sign of the activation one bit an
element each way. A norm over the batch in NHWC whose slabs outgrow the cache has to sweep twice: one more read of x
forward, one more of x and dy backward.
"""

from __future__ import annotations

from typing import NamedTuple

from .op import Op
from .problem import Case


class Bytes(NamedTuple):
    """Bytes of one call."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


def fewest(op: Op, case: Case) -> Bytes:
    """Every slab stays in cache between the two looks, and stores do not read first."""
    tensor, bits = case.numel * case.itemsize, case.numel / 8
    if op.added_first:  # reads both addends and writes the sum and the norm; one gradient serves both addends
        return Bytes(4 * tensor, 3 * tensor if op.training else 0)
    if not op.training:
        return Bytes((3 if op.residual else 2) * tensor, 0)
    if op.residual:
        return Bytes(3 * tensor + bits, 4 * tensor + bits)
    return Bytes(2 * tensor, 3 * tensor)


def two_sweeps(op: Op, case: Case) -> Bytes:
    """As `fewest`, with each input of the statistics read twice."""
    if not op.training:
        return fewest(op, case)
    once, tensor = fewest(op, case), case.numel * case.itemsize
    return Bytes(once.forward + tensor, once.backward + 2 * tensor)


def clone(case: Case) -> int:
    """What the roof moves: one read, one write."""
    return 2 * case.numel * case.itemsize
