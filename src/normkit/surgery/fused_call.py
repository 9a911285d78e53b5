"""What rewritten forwards call: a norm with the addition and the activation that follow it.

Rules: the layers stay plain and the activation modules stay where they are, so every other way to use them computes
what it did. The call is fused where the layer is normkit's own and nobody looks in between; a layer that somebody else
has put there meanwhile, hooks, a tracer: then norm, addition and activation run one after the other.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn, promote_types

from .. import nn as layers
from .._activation import resolve
from .._fx import is_proxy
from .._torch import has_own_forward, hooked, is_watched
from ..nn.base import Norm
from . import activations
from .instance_forward import InstanceForward

HEAD = "_normkit_head"  # of a module that ends with a norm: a `Head`, which computes that norm's input

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)

_TAKES_ACTIVATION = tuple(kind for kind in vars(layers).values() if isinstance(kind, type) and issubclass(kind, Norm))
_TAKES_RESIDUAL = tuple(kind for kind in _TAKES_ACTIVATION if "residual" in inspect.signature(kind.forward).parameters)


class FusedSequential(InstanceForward):
    """The forward of an nn.Sequential: its children in order, a norm and the activation after it in one call.

    It looks at the children at each call: those that are replaced, appended or removed later count.
    """

    def __call__(self, input: Any) -> Any:
        if is_proxy(input) or is_watched():
            return self.original(input)
        return _run(children_steps(self.owner), input)


def fused_call(module: nn.Module, input: Any, residual: Any = None, activation: Any = None) -> Any:
    """activation(norm(input) + residual), `norm` being `module` or what it ends with (see `leading`).

    input: (N, C, *), or what the norm takes. residual: what broadcasts to it, or None; as in an addition, the result
    has the wider dtype of both. activation: a name of torch.nn.functional, a module, or None.
    """
    norm = module if type(module) in _TAKES_ACTIVATION else ending(module)
    known = activations.seen_as(activation) if isinstance(activation, nn.Module) else activation
    fits = type(norm) in (_TAKES_ACTIVATION if residual is None else _TAKES_RESIDUAL) and _is_plain(norm)
    if not fits or known is None is not activation or is_proxy(input) or is_proxy(residual):
        return _one_by_one(norm, input, residual, activation)
    if residual is None:
        return norm(input, activation=known)
    if residual.shape != input.shape:
        residual = residual.expand(input.shape)
    if residual.dtype != input.dtype:
        input = input.to(promote_types(input.dtype, residual.dtype))
    return norm(input, residual=residual, activation=known)


def _one_by_one(norm: nn.Module, input: Any, residual: Any, activation: Any) -> Any:
    y = norm(input)
    if residual is not None:
        y = y + residual
    if activation is None:
        return y
    return activation(y) if isinstance(activation, nn.Module) else resolve(activation).function(y)


def _is_plain(norm: Any) -> bool:
    """Whether nothing but the layer's own forward says what a call gives."""
    return norm.activation is None and not has_own_forward(norm) and not hooked(norm)


def steps(module: nn.Module) -> list[nn.Module]:
    """What a call of the module calls one after the other: itself, or the steps of a plain nn.Sequential's children."""
    if is_sequential(module):
        return children_steps(module)
    return [] if is_idle(module) else [module]


def children_steps(module: nn.Module) -> list[nn.Module]:
    return [step for child in module._modules.values() if child is not None for step in steps(child)]


def leading(module: nn.Module, input: Any) -> Any:
    """The input of the norm that `module` ends with: all of its forward but the last step."""
    *before, last = steps(module) or [module]
    input = _run(before, input)
    head = _head(last)
    return input if head is None else leading(head.norm(last), head(last, input))


def ending(module: nn.Module) -> nn.Module:
    """The module whose call on `leading(module, x)` gives what `module(x)` gives."""
    last = (steps(module) or [module])[-1]
    head = _head(last)
    return last if head is None else ending(head.norm(last))


def _head(module: nn.Module) -> Any:
    head = module.__dict__.get(HEAD)
    return head if head is not None and not hooked(module) and head.holds(module) else None


def _run(modules: list[nn.Module], input: Any) -> Any:
    done = 0
    while done < len(modules):
        module, following = modules[done], modules[done + 1 : done + 2]
        if following and activations.seen_as(following[0]) is not None and type(ending(module)) in _TAKES_ACTIVATION:
            input = fused_call(module, leading(module, input), activation=following[0])
            done += 2
        else:
            input = module(input)
            done += 1
    return input


def is_sequential(module: nn.Module) -> bool:
    """Whether its forward is nn.Sequential's, and nobody listens to its calls."""
    if not has_sequentials_forward(module):
        return False
    fused = isinstance(module.__dict__.get("forward"), FusedSequential)
    return (fused or not has_own_forward(module)) and not hooked(module)


def has_sequentials_forward(module: nn.Module) -> bool:
    """Whether its class calls its children in their order: nn.Sequential's forward goes by ``__iter__``."""
    if not isinstance(module, nn.Sequential):
        return False
    kind = type(module)
    return kind.forward is nn.Sequential.forward and kind.__iter__ is nn.Sequential.__iter__


def is_idle(module: nn.Module) -> bool:
    """Whether it gives back what it is given, in training too."""
    idle = type(module) is nn.Identity or (isinstance(module, DROPOUTS) and module.p == 0)
    return idle and not has_own_forward(module) and not hooked(module)
