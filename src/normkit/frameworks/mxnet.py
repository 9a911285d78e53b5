"""States of MXNet: a file of parameters, as `mx.nd.load` gives it, of Gluon or of a symbol.

A symbol's BatchNorm has `fix_gamma=True` unless it says otherwise: gamma counts as 1 there, whatever its array holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from .foreign_norm import ForeignNorm, tensor_of

EXPECTED = "the parameters of MXNet by name, as mx.nd.load gives them"
OPERATOR_EPS = 1e-3  # of the operator, which a symbol names; Gluon's layer has 1e-5
_NAME = re.compile(r"^(?:arg:|aux:)?(.+)[._](gamma|beta|moving_mean|moving_var|running_mean|running_var)$")
_MINE = {
    "gamma": "weight", "beta": "bias", "moving_mean": "mean", "moving_var": "var", "running_mean": "mean",
    "running_var": "var",
}  # fmt: skip


def read(state: Any, fix_gamma: bool | None) -> list[ForeignNorm]:
    """The norms. fix_gamma: whether gamma counts as 1; None: the state must not leave it open."""
    if not isinstance(state, Mapping):
        raise TypeError(f"expected {EXPECTED}, got a {type(state).__name__}")
    norms: dict[str, dict[str, Any]] = {}
    symbolic: set[str] = set()
    for key, array in state.items():
        found = _NAME.match(key) if isinstance(key, str) else None
        if found:
            layer, name = found.groups()
            norms.setdefault(layer, {})[_MINE[name]] = tensor_of(array, key)
            symbolic |= {layer} if name.startswith("moving") else set()
    return [_norm(layer, own, layer in symbolic, fix_gamma) for layer, own in norms.items()]


def _norm(layer: str, own: dict[str, Any], symbolic: bool, fix_gamma: bool | None) -> ForeignNorm:
    default = OPERATOR_EPS if symbolic else None
    gamma = own.get("weight")
    if gamma is None or bool((gamma == 1).all()) or fix_gamma is False or (fix_gamma is None and not symbolic):
        fixed = fix_gamma is True
    elif fix_gamma is None:
        raise ValueError(
            f"{layer} is of a symbol, whose BatchNorm takes gamma as 1 unless it says fix_gamma=False, and its gamma "
            "is not 1: pass fix_gamma=True or fix_gamma=False, as the symbol has it"
        )
    else:
        fixed = True
    if not fixed:
        return ForeignNorm(layer, **own, eps_default=default)
    held = "" if gamma is None or torch.equal(gamma, torch.ones_like(gamma)) else ", not the array's values"
    return ForeignNorm(layer, **{**own, "weight": None}, eps_default=default, notes=(f"fix_gamma: gamma is 1{held}",))
