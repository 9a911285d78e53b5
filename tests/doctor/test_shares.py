"""The shares of a difference: what each order gives sums to 1, whatever the value function."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from normkit.doctor.shares import coalitions, orders, shares


@pytest.mark.parametrize("players", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("count", [2, 4, 8])
def test_orders_come_with_their_reverses_and_each_once(players, count):
    found = orders(players, count, 0)
    assert found[0] == tuple(range(players))
    assert len(found) == len(set(found)) == min(count, math.factorial(players))
    assert all(sorted(order) == list(range(players)) for order in found)
    assert {order[::-1] for order in found} == set(found)


def test_the_seed_draws_the_orders():
    assert orders(8, 6, 3) == orders(8, 6, 3)
    assert orders(8, 6, 3) != orders(8, 6, 4)


def test_coalitions_are_what_orders_begin_with():
    found = coalitions(orders(3, 2, 0))
    assert found == [frozenset(s) for s in ((), (0,), (0, 1), (0, 1, 2), (2,), (1, 2))]
    assert len(coalitions(orders(16, 4, 0))) <= 2 + 4 * 15


def value_of(players: int, seed: int) -> dict[frozenset[int], float]:
    draw = random.Random(seed)
    subsets = itertools.chain.from_iterable(itertools.combinations(range(players), n) for n in range(players + 1))
    return {frozenset(subset): draw.uniform(-1, 1) for subset in subsets}


@pytest.mark.parametrize("seed", range(5))
def test_every_order_sums_to_one(seed):
    value = value_of(5, seed)
    for row in shares(orders(5, 8, seed), value.__getitem__):
        assert sum(row) == pytest.approx(1, abs=1e-9)


def test_who_changes_nothing_gets_nothing():
    value = {key: other for key, other in value_of(4, 0).items() if 3 not in key}
    value |= {key | {3}: other for key, other in value.items()}
    table = shares(orders(4, 8, 0), value.__getitem__)
    assert all(row[3] == 0 for row in table)


def test_all_orders_give_the_shapley_value():
    """Two players who are only strong together share alike; a third adds 1 on its own."""
    table = shares(orders(3, 6, 0), lambda s: -(4.0 * ({0, 1} <= s) + 1.0 * (2 in s)))
    mean = [sum(column) / len(table) for column in zip(*table, strict=True)]
    assert mean == pytest.approx([0.4, 0.4, 0.2])
