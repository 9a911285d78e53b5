"""States of Paddle: a layer's state_dict, or the parameters of a static program."""

from __future__ import annotations

import re
from typing import Any

from .foreign_norm import ForeignNorm, tensor_of
from .nested import scopes, settings

EXPECTED = "a state_dict of Paddle"
_NAMES = {"weight": "weight", "bias": "bias", "_mean": "mean", "_variance": "var"}
_STATIC = {"w_0": "weight", "b_0": "bias", "w_1": "mean", "w_2": "var"}
_LIKE_NORM = re.compile(r"(norm|bn|ln)_?\d*$", re.IGNORECASE)


def read(state: Any) -> list[ForeignNorm]:
    """Layers with _mean and _variance (w_1 and w_2 in a static program), and what is called a norm and has a vector."""
    found = []
    for layer, own in _layers(state).items():
        said = settings(own)
        names = _STATIC if {"w_1", "w_2"} <= own.keys() else _NAMES
        arrays: dict[str, Any] = {
            names[name]: tensor_of(array, f"{layer}.{name}") for name, array in own.items() if name in names
        }
        vectors = "weight" in arrays and all(t.dim() == 1 for t in arrays.values())
        if {"mean", "var"} <= arrays.keys() or (_LIKE_NORM.search(layer) and vectors):
            found.append(ForeignNorm(layer, **arrays, **said))
    return found


def _layers(state: Any) -> dict[str, dict[str, Any]]:
    dotted = {
        (key.replace(".", "/") if isinstance(key, str) else key): value
        for key, value in getattr(state, "items", dict)()
    }
    given = scopes(dotted if hasattr(state, "items") else state, EXPECTED)
    return {layer.replace("/", "."): own for layer, own in given.items()}
