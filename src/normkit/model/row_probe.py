"""Which RMS or layer norm over one axis a module of somebody else computes, by its numbers and not by its name.

What can be refused at sight is; the rest is tried (`row_search.search`), once per class, sizes and settings.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .._torch import has_own_forward, why_own_forward
from .row_norm import RowNorm
from .row_search import search
from .row_twin import arguments, held
from .swap import parametrized

_PLAIN = (bool, int, float, str, type(None), tuple, torch.dtype, torch.device)
_OWN = frozenset(nn.Module().__dict__)

_known: WeakKeyDictionary[type, dict[Any, RowNorm | str]] = WeakKeyDictionary()


def row_norm_of(module: nn.Module) -> RowNorm | str:
    """What the module computes, or why that is not known. One probe per class, sizes and settings."""
    refusal = _refusal(module)
    if refusal is not None:
        return refusal
    key = _key(module)
    if key is None:
        return search(module)
    found = _known.setdefault(type(module), {})
    if key not in found:
        found[key] = search(module)
    return found[key]


def _refusal(module: nn.Module) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return "torch.jit has compiled it: change the model before that"
    if has_own_forward(module):
        forward = module.__dict__["forward"]
        ours = any(
            part.__module__.startswith("normkit.") for part in (type(forward), getattr(forward, "__func__", type))
        )
        return "it calls normkit's kernels already" if ours else why_own_forward(module)
    if parametrized(module):
        return "it has a parametrized weight"
    if any(child is not None for child in module._modules.values()):
        return "it holds other modules"
    buffers = [name for name, buffer in module._buffers.items() if buffer is not None]
    if buffers:
        return f"it holds the buffer {buffers[0]}"
    if any(is_lazy(parameter) for parameter in held(module).values()):
        return "it is lazy and has no shape yet: run the model once first"
    shapes = {name: tuple(parameter.shape) for name, parameter in held(module).items()}
    if len(shapes) > 2 or len(set(shapes.values())) > 1 or any(len(s) != 1 or s[0] < 2 for s in shapes.values()):
        shown = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        return f"it holds {shown}, and not a weight and a bias over one axis"
    if not 1 <= len(arguments(module)) <= 2:
        return f"its forward takes ({', '.join(arguments(module))})"
    return None


def _key(module: nn.Module) -> Any:
    """What its output can depend on besides its tensors' values; None where it holds what is not plain."""
    settings = {name: value for name, value in module.__dict__.items() if name not in _OWN}
    if not all(isinstance(value, _PLAIN) for value in settings.values()):
        return None
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in held(module).items())
    return type(module).forward, shapes, repr(sorted(settings.items()))
