"""Activations that follow a normalization: which ones the kernels fuse, and what they compute.

An activation is named as in torch.nn.functional ("relu"), given as a module (nn.LeakyReLU(0.2)), or None. A module is
recognised by its exact type: a subclass may compute anything, so it is called after the normalization instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

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

_BY_NAME: dict[str, int] = {
    "relu": RELU,
    "leaky_relu": LEAKY_RELU,
    "relu6": RELU6,
    "silu": SILU,
    "gelu": GELU,
    "sigmoid": SIGMOID,
    "tanh": TANH,
    "hardswish": HARDSWISH,
    "hardsigmoid": HARDSIGMOID,
    "elu": ELU,
    "mish": MISH,
}
# Names without a kernel of their own: computed after the normalization.
_NAMES_AFTER = frozenset(
    ["celu", "selu", "hardtanh", "softplus", "softsign", "tanhshrink", "hardshrink", "softshrink", "logsigmoid"]
)
_DEFAULT_PARAM = {LEAKY_RELU: 0.01, ELU: 1.0}


_NAMED = {
    name: Activation(code, getattr(F, name), _DEFAULT_PARAM.get(code, 0.0)) for name, code in _BY_NAME.items()
} | {name: Activation(AFTER, getattr(F, name)) for name in sorted(_NAMES_AFTER)}


def by_code(code: int, param: float) -> Activation:
    """The activation that a kernel's code and parameter stand for; its function is not for calling."""
    return NONE if code == IDENTITY else Activation(code, _same, param)


# Modules that say all by their type.
_BY_TYPE: dict[type[nn.Module], Activation] = {
    nn.Identity: NONE,
    nn.ReLU: _NAMED["relu"],
    nn.ReLU6: _NAMED["relu6"],
    nn.SiLU: _NAMED["silu"],
    nn.Sigmoid: _NAMED["sigmoid"],
    nn.Tanh: _NAMED["tanh"],
    nn.Hardswish: _NAMED["hardswish"],
    nn.Hardsigmoid: _NAMED["hardsigmoid"],
    nn.Mish: _NAMED["mish"],
}


def _of_module(module: nn.Module) -> Activation:
    kind = type(module)
    if kind in _BY_TYPE:
        return _BY_TYPE[kind]
    if isinstance(module, nn.LeakyReLU) and kind is nn.LeakyReLU:
        slope = float(module.negative_slope)
        return Activation(LEAKY_RELU, partial(F.leaky_relu, negative_slope=slope), slope)
    if isinstance(module, nn.ELU) and kind is nn.ELU:
        return Activation(ELU, partial(F.elu, alpha=module.alpha), float(module.alpha))
    if isinstance(module, nn.GELU) and kind is nn.GELU:
        code = GELU if module.approximate == "none" else GELU_TANH
        return Activation(code, partial(F.gelu, approximate=module.approximate))
    return Activation(AFTER, module)


def resolve(activation: str | nn.Module | Activation | None) -> Activation:
    """The :class:`Activation` that the user named.

    Raises:
        ValueError: an unknown name.
        TypeError: neither None, a name nor a module.
    """
    if activation is None:
        return NONE
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str):
        if activation not in _NAMED:
            known = ", ".join(sorted(_NAMED))
            raise ValueError(f"activation {activation!r} is not known: expected one of {known}, or a module")
        return _NAMED[activation]
    if isinstance(activation, nn.Module):
        return _of_module(activation)
    raise TypeError(
        f"activation must be None, a name of torch.nn.functional or an nn.Module, got {type(activation).__name__}"
    )
