"""States as frameworks keep them: dicts inside of dicts, and flat names: tuples, or with slashes between the parts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .foreign_norm import is_array

Scopes = dict[str, dict[str, Any]]  # the name of a layer -> the name of each of its arrays -> the array
_SETTINGS = {"epsilon": "eps", "eps": "eps", "momentum": "keeps", "decay_rate": "keeps"}
DEEPEST = 64  # levels of dicts


def scopes(state: Any, expected: str) -> Scopes:
    """The arrays and numbers of each layer, in the state's order. A layer's name is the path to it, slashes between.

    TypeError for what is no mapping, ValueError for one without an array.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"expected {expected}, got a {type(state).__name__}")
    found: Scopes = {}
    for path, array in _leaves(state, (), DEEPEST):
        layer, _, name = "/".join(path).rpartition("/")
        found.setdefault(layer, {})[name] = array
    if not found:
        raise ValueError(f"expected {expected}, got a mapping without one array")
    return found


def settings(own: dict[str, Any]) -> dict[str, Any]:
    """eps and how much of the old statistic is kept, where a layer's dict holds these numbers: taken out of it."""
    said = {name: own.pop(name) for name in list(own) if isinstance(own[name], (int, float))}
    return {_SETTINGS[name]: float(value) for name, value in said.items() if name in _SETTINGS}


def canonical(name: str) -> str:
    """What two names have in common where only their separators differ: "a.b" of "a/b" and of "a/~/b"."""
    return ".".join(part for part in re.split(r"[/.]", name) if part not in ("", "~"))


def natural(name: str) -> list[Any]:
    """A key by which "bn_2" comes before "bn_10"."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _leaves(state: Mapping[Any, Any], path: tuple[str, ...], levels: int) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in state.items():
        here = (*path, *map(str, key if isinstance(key, tuple) else (key,)))
        if isinstance(value, Mapping):
            if levels == 0:
                raise ValueError(f"expected at most {DEEPEST} levels of mappings, found more")
            yield from _leaves(value, here, levels - 1)
        elif is_array(value) or is_array(getattr(value, "value", None)) or type(value) in (int, float):
            yield here, value
