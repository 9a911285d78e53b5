"""States of Haiku: the pair (params, state), or both as one mapping.

A batch norm keeps each statistic as a moving average of its own, `NAME/~/mean_ema`, with `hidden`, which begins at
zero, and `average`, which is `hidden` freed from that: evaluation uses `average`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .foreign_norm import ForeignNorm, tensor_of, vector
from .nested import scopes

EXPECTED = "the pair (params, state) of a Haiku transform"
_AVERAGES = {"mean_ema": "mean", "var_ema": "var"}


def read(state: Any) -> list[ForeignNorm]:
    """Layers with a scale, an offset or a pair of averages."""
    norms: dict[str, dict[str, Any]] = {}
    for part in [part for part in _parts(state) if part] or [state]:
        for layer, own in scopes(part, EXPECTED).items():
            owner, _, last = layer.rpartition("/")
            if last in _AVERAGES and "average" in own:
                norm = norms.setdefault(owner.removesuffix("/~"), {})
                norm[_AVERAGES[last]] = _vector(own["average"], f"{layer}/average")
                if "counter" in own:
                    norm["counter"] = int(tensor_of(own["counter"], f"{layer}/counter").item())
            elif set(own) <= {"scale", "offset"}:
                norm = norms.setdefault(layer, {})
                for name, mine in (("scale", "weight"), ("offset", "bias")):
                    if name in own:
                        norm[mine] = _vector(own[name], f"{layer}/{name}")
    notes = ("the average, not the hidden sum that begins at 0",)
    return [ForeignNorm(name, **own, notes=notes if "mean" in own else ()) for name, own in norms.items()]


def _parts(state: Any) -> tuple[Any, ...]:
    if isinstance(state, tuple):
        return state
    if isinstance(state, Mapping) and set(state) == {"params", "state"}:
        return state["params"], state["state"]
    return (state,)


def _vector(array: Any, name: str) -> Tensor:
    """The batch norm's arrays keep the input's rank: (1, 1, 1, C)."""
    return vector(tensor_of(array, name))
