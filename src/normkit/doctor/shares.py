"""A difference shared among players: the mean of their marginal differences over some orders (Shapley 1953, sampled).

Rules: nothing here knows of models. Each order's shares sum to 1; a player that never changes the value gets 0. Orders
come with their reverses: where one player sees the others before it, it sees them after it too, which takes the odd
part of the sampling error away (antithetic pairs; Mitchell, Cooper, Frank & Holmes 2022, section 4.1).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import TypeAlias

Order: TypeAlias = "tuple[int, ...]"
Coalition: TypeAlias = "frozenset[int]"


def orders(players: int, count: int, seed: int) -> list[Order]:
    """`count` orders of 0 .. players - 1, or all there are, each once: the natural one, its reverse, random pairs."""
    natural = tuple(range(players))
    found = dict.fromkeys((natural, natural[::-1]))
    draw = random.Random(seed)
    while len(found) < min(count, math.factorial(players)):
        order = tuple(draw.sample(natural, players))
        found.update(dict.fromkeys((order, order[::-1])))
    return list(found)


def coalitions(orders: Sequence[Order]) -> list[Coalition]:
    """Every set of players that some order begins with, each once: the empty one first, then as they are met."""
    return list(dict.fromkeys(frozenset(order[:size]) for order in orders for size in range(len(order) + 1)))


def shares(orders: Sequence[Order], value: Callable[[Coalition], float]) -> list[list[float]]:
    r"""(orders, players): what each player takes away of `value`, as a part of what all take away together.

    .. math:: s_p = \frac{v(S) - v(S \cup \{p\})}{v(\emptyset) - v(\text{all})}, \quad S \text{ the players before } p
    """
    table = []
    for order in orders:
        row = [0.0] * len(order)
        whole = value(frozenset()) - value(frozenset(order))
        for place, player in enumerate(order):
            before = frozenset(order[:place])
            row[player] = (value(before) - value(before | {player})) / whole
        table.append(row)
    return table
