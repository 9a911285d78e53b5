"""`nk.recompute_outputs` around a model's own forward, as a pair of hooks: what `nk.accelerate(recompute=True)` adds.

Rules: class, names and state_dict stay; the hooks are functions of this module, so the model is copied and saved with
them; they get the module that runs (a replica of DataParallel, too) and do nothing where hooks on saved tensors are
refused or useless. A KeyboardInterrupt passes torch's hooks by: the context then stays on in its thread, which
changes no value, until the model is called again.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from .._torch import saved_tensors_hooks_allowed, saved_tensors_hooks_top
from ..functional.choose import is_exporting, is_transformed
from ..functional.recompute import recompute_outputs
from ..model.transaction import Transaction

_HANDLES = "_normkit_recompute"


def add(model: nn.Module) -> None:
    """Have every training forward of `model` keep recipes instead of norms' outputs."""
    if _HANDLES in model.__dict__:
        return
    with Transaction(model) as change, change:
        change.commit(lambda: _register(model))


def remove(model: nn.Module) -> None:
    """Undo `add`."""
    for handle in model.__dict__.pop(_HANDLES, ()):
        handle.remove()


def _register(model: nn.Module) -> None:
    # The handles travel with the model: a loaded one then gives later hooks other numbers.
    model.__dict__[_HANDLES] = (
        model.register_forward_pre_hook(_before, prepend=True),
        model.register_forward_hook(_after, always_call=True),
    )


class _Local(threading.local):
    """The contexts of the forwards that run in this thread, innermost last."""

    def __init__(self) -> None:
        self.entered: list[tuple[nn.Module, AbstractContextManager[None] | None]] = []


_local = _Local()


def _before(module: nn.Module, arguments: Any) -> None:
    if torch.compiler.is_compiling():
        return
    _leave_interrupted(module)
    context = None
    if module.training and torch.is_grad_enabled() and _has_way():
        context = recompute_outputs()
        context.__enter__()
    _local.entered.append((module, context))


def _leave_interrupted(module: nn.Module) -> None:
    """Leave the contexts since the forward of this module that has begun and not ended: it was interrupted."""
    if not any(owner is module for owner, _ in _local.entered):
        return
    owner = None
    while owner is not module:
        owner, context = _local.entered.pop()
        if context is not None:
            context.__exit__(None, None, None)


def _after(module: nn.Module, arguments: Any, output: Any) -> None:
    if torch.compiler.is_compiling() or not _local.entered or _local.entered[-1][0] is not module:
        return  # a hook before ours has failed
    _, context = _local.entered.pop()
    if context is not None:
        context.__exit__(None, None, None)


def _has_way() -> bool:
    """Whether hooks on saved tensors are allowed here and nobody else's (a checkpoint's, ours outside) are at work."""
    return (
        not is_transformed()
        and not is_exporting()
        and saved_tensors_hooks_allowed()
        and saved_tensors_hooks_top() is None
    )
