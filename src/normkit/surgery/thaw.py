"""What a frozen layer remembers of the layer it was.

The layer of before is kept on the frozen one, outside of the module tree: no state_dict entry, nothing for an
optimizer. Its Parameter objects wait there, without gradient; the frozen layer's buffers share their memory. Whatever
happens to the buffers meanwhile (`.to`, `.half`, a loaded state) is what the parameters get on the way back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_ATTRIBUTE = "_normkit_frozen_from"


@dataclass
class Memory:
    """The layer of before, its mode, the model's mode then, and which of its parameters were trained."""

    layer: nn.Module
    training: bool
    model_training: bool
    trained: dict[str, bool]


def remember(frozen: nn.Module, before: nn.Module, model: nn.Module) -> None:
    """Keep `before` on the layer that will replace it."""
    trained = {name: parameter.requires_grad for name, parameter in before.named_parameters(recurse=False)}
    frozen.__dict__[_ATTRIBUTE] = Memory(before, before.training, model.training, trained)


def forget(frozen: nn.Module) -> None:
    """Let it be a frozen layer that was no other one."""
    frozen.__dict__.pop(_ATTRIBUTE, None)


def put_away(layer: nn.Module) -> None:
    """Put the parameters of the layer that this one remembers, if it does, out of the reach of an optimizer."""
    memory = remembered(layer)
    for parameter in () if memory is None else memory.layer.parameters(recurse=False):
        parameter.requires_grad_(False)
        parameter.grad = None  # an optimizer would still apply it, to memory that the frozen layer uses


def remembered(layer: nn.Module) -> Memory | None:
    found = layer.__dict__.get(_ATTRIBUTE)
    return found if isinstance(found, Memory) else None


def waiting_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of before of all frozen ones: no part of the model, and changed with it."""
    return [memory.layer for layer in model.modules() if (memory := remembered(layer)) is not None]


def thawed(layer: nn.Module, model: nn.Module) -> nn.Module:
    """The layer of before with the present values, trained as before; `layer` itself where nothing is remembered.

    Its mode is what it was, or the model's where that has changed since.
    """
    memory = remembered(layer)
    if memory is None:
        return layer
    before = memory.layer
    moved = _moved_dtype(before, layer)
    for name, trained in memory.trained.items():
        parameter = _holding(before._parameters[name], layer._buffers[name])
        parameter.requires_grad_(trained)
        before._parameters[name] = parameter
    for name, old in before._buffers.items():
        now = layer._buffers.get(name)
        if old is not None:
            present = old if now is None else now
            device = layer._buffers["running_mean"].device  # type: ignore[union-attr]  # a frozen layer has it
            before._buffers[name] = present.to(device, moved if moved and old.is_floating_point() else old.dtype)
    before.train(memory.training if model.training == memory.model_training else model.training)
    return before


def _holding(parameter: Any, value: Any) -> nn.Parameter:
    """The same Parameter object with this value; a new one where it was made on meta and the value lies elsewhere."""
    if parameter.is_meta and not value.is_meta:
        return nn.Parameter(value)  # as `to_empty` and `load_state_dict(assign=True)` give the plain layer
    parameter.data = value
    return parameter


def _moved_dtype(before: nn.Module, layer: nn.Module) -> torch.dtype | None:
    """The dtype that the model was cast to meanwhile, where torch's layer would have cast its statistics too."""
    weight = before._parameters.get("weight")
    now = layer._buffers["weight"]
    if weight is None or now is None or now.dtype == weight.dtype or hasattr(before, "_widen_statistics"):
        return None
    return now.dtype
