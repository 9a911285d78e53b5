"""States of Keras and of TensorFlow: variables by path, or a Keras model, which says eps and momentum too."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .foreign_norm import ForeignNorm, tensor_of
from .nested import scopes, settings

EXPECTED = 'a Keras model, or its variables by name ("bn/gamma"), as {w.path: w.numpy() for w in model.weights}'
_NAMES = {
    "gamma": "weight", "scale": "weight", "beta": "bias", "moving_mean": "mean", "moving_variance": "var",
}  # fmt: skip
_FAMILIES = {
    "BatchNormalization": "batch", "LayerNormalization": "layer", "GroupNormalization": "group",
    "RMSNormalization": "rms",
}  # fmt: skip
_SUFFIX = re.compile(r"(/\.ATTRIBUTES/VARIABLE_VALUE|:0)$")  # of TensorFlow's checkpoints and variables


def read(state: Any) -> list[ForeignNorm]:
    """The norms among the layers of a Keras model, or among variables by name.

    Raises ValueError for a layer that no norm of PyTorch computes.
    """
    if not isinstance(state, Mapping) and hasattr(state, "layers"):
        return list(_of_model(state))
    if isinstance(state, Mapping):
        state = {_SUFFIX.sub("", key) if isinstance(key, str) else key: value for key, value in state.items()}
    given = scopes(state, EXPECTED)
    said = {layer: settings(own) for layer, own in given.items()}
    return [
        ForeignNorm(layer, **_arrays(layer, own), **said[layer])
        for layer, own in given.items()
        if {"gamma", "beta", "moving_mean"} & own.keys() or set(own) == {"scale"}
    ]


def _arrays(layer: str, own: Mapping[str, Any]) -> dict[str, Any]:
    return {mine: tensor_of(own[name], f"{layer}/{name}") for name, mine in _NAMES.items() if name in own}


def _of_model(model: Any) -> Iterator[ForeignNorm]:
    flatten = getattr(model, "_flatten_layers", None)  # layers inside of layers too, whatever attribute holds them
    for layer in flatten() if callable(flatten) else model.layers:
        arrays = any(getattr(layer, name, None) is not None for name in ("gamma", "beta", "moving_mean"))
        bare = _family(layer) is not None and getattr(layer, "built", False)  # neither gamma nor beta, but an eps
        if hasattr(layer, "epsilon") and (arrays or bare or hasattr(getattr(layer, "scale", None), "shape")):
            yield _of_layer(layer)


def _family(layer: Any) -> str | None:
    """By the class, or one that it derives from."""
    return next((_FAMILIES[base.__name__] for base in type(layer).__mro__ if base.__name__ in _FAMILIES), None)


def _of_layer(layer: Any) -> ForeignNorm:
    found = {name: getattr(layer, name, None) for name in _NAMES}
    there = {name: value for name, value in found.items() if hasattr(value, "shape")}  # scale is a flag in most
    path = _place(next(iter(there.values()))) if there else str(getattr(layer, "path", ""))
    name = path or layer.name
    if getattr(layer, "rms_scaling", False):
        raise ValueError(
            f"{name} has rms_scaling=True, which divides by the deviation and leaves the mean: no norm of PyTorch does"
        )
    keeps, groups = getattr(layer, "momentum", None), getattr(layer, "groups", None)
    return ForeignNorm(
        name, **_arrays(name, there), eps=float(layer.epsilon), keeps=None if keeps is None else float(keeps),
        family=_family(layer), groups=None if groups is None else int(groups),
    )  # fmt: skip


def _place(variable: Any) -> str:
    """The layer's path, of the variable's: "block/bn" of "block/bn/gamma"."""
    path = getattr(variable, "path", None) or getattr(variable, "name", "")
    return _SUFFIX.sub("", str(path)).rpartition("/")[0]
