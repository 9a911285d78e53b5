"""The way back from `nk.accelerate`: what it replaced and added is taken out where no norm is normkit's any more.

A layer of a class of somebody else, which no builder can make, is kept on the layer that stands for it, outside of the
module tree; its tensors are the same objects, and what they are by now is what it gets back.
"""

from __future__ import annotations

from torch import nn

from ..model.families import is_ours
from . import activations, row_norms
from .fused_call import HEAD
from .instance_forward import uninstall
from .recompute import remove as remove_recomputation

_ATTRIBUTE = "_normkit_stands_for"


def remember(new: nn.Module, before: nn.Module) -> None:
    """Keep the layer that `new` stands for."""
    new.__dict__[_ATTRIBUTE] = before


def original(layer: nn.Module) -> nn.Module | None:
    """The layer that this one stands for, with the present tensors and mode; None where none is remembered."""
    before = layer.__dict__.get(_ATTRIBUTE)
    if not isinstance(before, nn.Module):
        return None
    for held, now in ((before._parameters, layer._parameters), (before._buffers, layer._buffers)):
        for name in held.keys() & now.keys():
            held[name] = now[name]  # type: ignore[assignment]  # parameters among parameters, buffers among buffers
    return before.train(layer.training)


def standing_aside(model: nn.Module) -> list[nn.Module]:
    """The layers that are remembered: no part of the model, and changed with it."""
    found = (module.__dict__.get(_ATTRIBUTE) for module in model.modules())
    return [layer for layer in found if isinstance(layer, nn.Module)]


def undo(model: nn.Module) -> None:
    """Take away rewritten forwards, and what recomputes, where no norm of normkit is left that they could call."""
    for module in model.modules():
        activations.unmark(module)
        if not row_norms.installed(module) and not any(map(is_ours, module.modules())):
            uninstall(module)
            module.__dict__.pop(HEAD, None)
            remove_recomputation(module)
