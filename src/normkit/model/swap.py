"""Copying a model and putting one module in another's place.

Rules: what replaces a layer takes over its mode, its hooks (the same dictionaries, so handles keep working) and the
public attributes that a user or a library hung on it; every name of a shared layer gets the same new object.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import nn
from torch.nn.utils import parametrize

from .._torch import HOOKS, NOT_SAVED
from ..nn.frozen_batch_norm import _FrozenBatchNorm
from .aside import leads_back
from .dataflow import refuse_lazy


def working_copy(model: nn.Module, inplace: bool) -> nn.Module:
    """`model` itself, or a deep copy; RuntimeError naming inplace=True where it cannot be copied."""
    if inplace:
        return model
    try:
        twin = copy.deepcopy(model)
    except Exception as error:
        refuse_lazy(model)
        raise RuntimeError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}); "
            "pass inplace=True to change the model itself"
        ) from error
    attribute = leads_back(twin, model)
    if attribute is not None:
        raise RuntimeError(
            f"{type(model).__name__} cannot be copied: a copy's {attribute} holds modules of the original (a function "
            "is not copied, nor is what it refers to); pass inplace=True to change the model itself"
        )
    _give_modes(twin, model)
    return twin


def _give_modes(twin: nn.Module, model: nn.Module) -> None:
    """Each copied module the mode of its original: a graph module's copy is made anew, in training mode."""
    modes = {name: module.training for name, module in model.named_modules(remove_duplicate=False)}
    for name, module in twin.named_modules(remove_duplicate=False):  # from the outside in: train() goes down
        mode = modes.get(name, module.training)
        if module.training != mode:
            module.train(mode)  # and not the flag alone: some have another graph for each mode


def put(model: nn.Module, names: Iterable[str], new: nn.Module) -> None:
    """Make `new` the child at each of these qualified names."""
    for name in names:
        parent, _, child = name.rpartition(".")
        model.get_submodule(parent)._modules[child] = new


def take_over(new: nn.Module, old: nn.Module) -> None:
    """Give `new` the mode, hooks and foreign attributes of `old`; parameters and buffers are the caller's matter,
    but for what a frozen layer's state must not have or lack."""
    new.train(old.training)
    for name in HOOKS:
        new.__dict__[name] = old.__dict__[name]
    new.__dict__[NOT_SAVED] = old.__dict__[NOT_SAVED] & new._buffers.keys()
    arguments = set(getattr(type(old), "__constants__", ()))
    for name, value in old.__dict__.items():
        if not name.startswith("_") and name not in new.__dict__ and name not in arguments and not hasattr(new, name):
            new.__dict__[name] = value
    if isinstance(new, _FrozenBatchNorm):
        new._stand_for(old)  # a checkpoint fits both


def parametrized(module: nn.Module) -> bool:
    """Whether some parameter is computed from others at each use (`torch.nn.utils.parametrize`)."""
    return parametrize.is_parametrized(module)


def kind(module: nn.Module) -> str:
    return type(module).__name__
