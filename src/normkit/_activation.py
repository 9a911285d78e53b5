"""Activations that follow a normalization: which ones the kernels fuse, and what they compute.

An activation is named as in torch.nn.functional ("relu"), given as a module (nn.LeakyReLU(0.2)), or None. A module is
recognised by its exact type: a subclass may compute anything, so it is called after the normalization instead; and so
is one that has hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._torch import has_own_forward, hooked, is_watched

# Codes are the native kernels' numbers of the activations (native/view.h); 0 is the identity and -1 one that they lack.
CODES = range(13)
IDENTITY, RELU, LEAKY_RELU, RELU6, SILU, GELU, GELU_TANH, SIGMOID, TANH, HARDSWISH, HARDSIGMOID, ELU, MISH = CODES
AFTER = -1


@dataclass(frozen=True)
class Activation:
    """What follows the normalization: the kernels' code and parameter, and the function itself."""

    code: int
    function: Callable[[Tensor], Tensor]
    param: float = 0.0


def _same(x: Tensor) -> Tensor:
    return x


NONE = Activation(IDENTITY, _same)

_BY_NAME: dict[str, tuple[int, type[nn.Module]]] = {
    "relu": (RELU, nn.ReLU),
    "leaky_relu": (LEAKY_RELU, nn.LeakyReLU),
    "relu6": (RELU6, nn.ReLU6),
    "silu": (SILU, nn.SiLU),
    "gelu": (GELU, nn.GELU),
    "sigmoid": (SIGMOID, nn.Sigmoid),
    "tanh": (TANH, nn.Tanh),
    "hardswish": (HARDSWISH, nn.Hardswish),
    "hardsigmoid": (HARDSIGMOID, nn.Hardsigmoid),
    "elu": (ELU, nn.ELU),
    "mish": (MISH, nn.Mish),
}
FUSED = frozenset(_BY_NAME)  # the names that have a kernel of their own
# torch's modules of these; a tuple: Dynamo of torch 2.8 does not ask a frozenset for a class
MODULES = tuple(dict.fromkeys(kind for _, kind in _BY_NAME.values()))
# Names without a kernel of their own: computed after the normalization.
_NAMES_AFTER = frozenset(
    ["celu", "selu", "hardtanh", "softplus", "softsign", "tanhshrink", "hardshrink", "softshrink", "logsigmoid"]
)
_DEFAULT_PARAM = {LEAKY_RELU: 0.01, ELU: 1.0}


def _hardsigmoid(x: Tensor) -> Tensor:
    """relu6(x + 3) / 6. In float64 by these operations: torch's own derivative has a 1 / 6 of float32, off by 3e-8."""
    return F.relu6(x + 3) / 6 if x.dtype == torch.float64 else F.hardsigmoid(x)


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {name: getattr(F, name) for name in _BY_NAME}
_FUNCTIONS["hardsigmoid"] = _hardsigmoid
_NAMED = {
    name: Activation(code, _FUNCTIONS[name], _DEFAULT_PARAM.get(code, 0.0)) for name, (code, _) in _BY_NAME.items()
} | {name: Activation(AFTER, getattr(F, name)) for name in sorted(_NAMES_AFTER)}


def by_code(code: int, param: float) -> Activation:
    """The activation that a kernel's code and parameter stand for; its function is not for calling."""
    return NONE if code == IDENTITY else Activation(code, _same, param)


_BY_TYPE = {kind: _NAMED[name] for name, (_, kind) in _BY_NAME.items()} | {nn.Identity: NONE}


def _of_module(module: nn.Module) -> Activation:
    kind = type(module)
    known = _BY_TYPE.get(kind)
    if known is None or hooked(module) or has_own_forward(module) or is_watched():
        return Activation(AFTER, module)
    if isinstance(module, nn.LeakyReLU):
        slope = float(module.negative_slope)
        return Activation(LEAKY_RELU, partial(F.leaky_relu, negative_slope=slope), slope)
    if isinstance(module, nn.ELU):
        return Activation(ELU, partial(F.elu, alpha=module.alpha), float(module.alpha))
    if isinstance(module, nn.GELU):
        code = GELU if module.approximate == "none" else GELU_TANH
        return Activation(code, partial(F.gelu, approximate=module.approximate))
    return known


def given_as(activation: Activation) -> str | nn.Module | None:
    """How a layer is given this activation: a name, a new module where an argument is not the default, or None where
    it has no kernel of its own."""
    code, param = activation.code, activation.param
    if code == GELU_TANH:
        return nn.GELU("tanh")
    for name, (found, kind) in _BY_NAME.items():
        if found == code:
            return name if param == _DEFAULT_PARAM.get(code, 0.0) else kind(param)
    return None


def module_of(name: str, *arguments: Any, **options: Any) -> nn.Module:
    """torch's module of a name in `FUSED`. TypeError where it does not take the arguments."""
    return _BY_NAME[name][1](*arguments, **options)


def resolve(activation: str | nn.Module | Activation | None) -> Activation:
    """The :class:`Activation` that the user named.

    Raises:
        ValueError: an unknown name.
        TypeError: neither None, a name nor a module.
    """
    if activation is None:
        return NONE
    if isinstance(activation, str):  # first: the common one, once a call of a layer
        named = _NAMED.get(activation)
        if named is None:
            known = ", ".join(sorted(_NAMED))
            raise ValueError(f"activation {activation!r} is not known: expected one of {known}, or a module")
        return named
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, nn.Module):
        return _of_module(activation)
    raise TypeError(
        f"activation must be None, a name of torch.nn.functional or an nn.Module, got {type(activation).__name__}"
    )
