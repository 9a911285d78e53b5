"""The bytes model against the project's table of floors, in bytes per float32 element."""

from __future__ import annotations

import pytest

from normkit.bench import floor
from normkit.bench.problem import Case
from normkit.bench.suite import OPS

BIT = 1 / 8

FLOORS = {  # operation: (fewest forward, backward), (two sweeps forward, backward)
    "batch_norm": ((8, 12), (12, 20)),
    "batch_norm+relu": ((8, 12), (12, 20)),
    "batch_norm+add+relu": ((12 + BIT, 16 + BIT), (16 + BIT, 24 + BIT)),
    "group_norm": ((8, 12), (12, 20)),
    "rms_norm": ((8, 12), (12, 20)),
    "add+rms_norm": ((16, 12), (20, 20)),
    "add+rms_norm_inference": ((16, 0), (16, 0)),
    "inference": ((8, 0), (8, 0)),
    "inference+add+relu": ((12, 0), (12, 0)),
}


@pytest.mark.parametrize("name", FLOORS)
def test_bytes_per_element(name: str) -> None:
    case = Case(name, (4, 8, 5, 5), "NCHW")
    fewest, swept = floor.fewest(OPS[name], case), floor.two_sweeps(OPS[name], case)
    per_element = [tuple(count / case.numel for count in counts) for counts in (fewest, swept)]
    assert per_element == [pytest.approx(expected) for expected in FLOORS[name]]


def test_half_the_bytes_in_16_bits() -> None:
    single, half = (Case("batch_norm", (4, 8, 5, 5), "NCHW", dtype) for dtype in ("float32", "bfloat16"))
    assert floor.fewest(OPS["batch_norm"], half).total * 2 == floor.fewest(OPS["batch_norm"], single).total
    assert floor.clone(half) * 2 == floor.clone(single) == 8 * single.numel
