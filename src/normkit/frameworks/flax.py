"""States of Flax: the variables of linen ("params" and "batch_stats"), and the state of an nnx module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .foreign_norm import ForeignNorm, tensor_of
from .nested import natural, scopes, settings

EXPECTED = 'the variables of Flax ({"params": ..., "batch_stats": ...}), or nnx.state(module)'
_COLLECTIONS = ("params", "batch_stats")
_NAMES = {"scale": "weight", "bias": "bias", "mean": "mean", "var": "var"}


def read(state: Any) -> list[ForeignNorm]:
    """The scopes that hold a scale and nothing that a norm has not, or a mean and a variance.

    They come in the order of their numbers: a jitted training sorts its dicts, BatchNorm_10 before BatchNorm_2.
    """
    given = scopes(state, EXPECTED)
    collected = any(layer.partition("/")[0] in _COLLECTIONS for layer in given)
    found: dict[str, dict[str, Any]] = {}
    for path, own in given.items():
        collection, _, layer = path.partition("/")
        if not collected or collection in _COLLECTIONS:
            found.setdefault(layer if collected else path, {}).update(own)
    said = {layer: settings(own) for layer, own in found.items()}
    return [
        ForeignNorm(layer, **_arrays(layer, own), **said[layer])
        for layer, own in sorted(found.items(), key=lambda item: natural(item[0]))
        if set(own) <= _NAMES.keys() and ("scale" in own or {"mean", "var"} <= own.keys())
    ]


def _arrays(layer: str, own: Mapping[str, Any]) -> dict[str, Any]:
    return {_NAMES[name]: tensor_of(array, f"{layer}/{name}") for name, array in own.items()}
