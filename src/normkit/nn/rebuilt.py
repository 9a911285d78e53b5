"""Code of others that rebuilds a norm from its parts must not lose the norm's activation.

`torch.nn.SyncBatchNorm.convert_sync_batchnorm` (what trainers' options call), `torch.nn.utils.fusion.fuse_conv_bn_eval`
and their kin know torch's layers, take weight, statistics and eps, and leave the activation behind: a network without
its ReLUs, and not a word. Such a function has to name eps, or the number of channels, beside the tensors; one that
names neither `activation` nor belongs to the layer itself is stopped there. Layers without an activation give what
they are asked for.
"""

from __future__ import annotations

import inspect
import sys
from types import CodeType
from typing import Any

import torch

_LOST = (
    "{caller} takes {kind} apart and would lose its activation, {activation}. nk.convert(model, 'sync') makes it a "
    "SyncBatchNorm, nk.fold(model, example_inputs) folds it, each with the activation; nk.convert(model, 'torch') is "
    "the way back from nk.accelerate. Code that takes over `activation`, or reads it, is let pass"
)


def setting(name: str, *beside: frozenset[str]) -> property:
    """A plain attribute of a layer with an activation. beside: the names of tensors (each group whole) that show that
    who reads it rebuilds the layer. A property, because the Dynamo of torch 2.6 follows no other such descriptor."""
    # Dynamo of torch 2.10 and older takes held[name] for getattr(layer, name), and would come back here
    compiled = f"_{name}"

    def read(layer: Any) -> Any:
        held = layer.__dict__
        if name not in held:
            raise AttributeError(f"{type(layer).__name__!r} object has no attribute {name!r}")
        if torch.compiler.is_compiling():
            return held[compiled]
        activation = held.get("activation") or layer._modules.get("activation")
        if activation is not None:
            _verify_reader(layer, activation, beside)
        return held[name]

    def write(layer: Any, value: Any) -> None:
        layer.__dict__[name] = layer.__dict__[compiled] = value

    return property(read, write)


def _verify_reader(layer: Any, activation: Any, beside: tuple[frozenset[str], ...]) -> None:
    frame = inspect.currentframe().f_back.f_back  # type: ignore[union-attr]  # who reads the attribute
    assert frame is not None
    code, where = frame.f_code, frame.f_globals.get("__name__", "")
    if not _rebuilds(code, beside) or where.startswith("normkit.") or frame.f_locals.get("self") is layer:
        return
    caller = f"{where}.{code.co_qualname if sys.version_info >= (3, 11) else code.co_name}"
    raise RuntimeError(_LOST.format(caller=caller, kind=type(layer).__name__, activation=activation))


def _rebuilds(code: CodeType, beside: tuple[frozenset[str], ...]) -> bool:
    names = frozenset(code.co_names)
    return "activation" not in names and any(group <= names for group in beside)


# DETR's replacement of batch norms in transformers has an eps of its own and reads the number of channels.
EPS = (frozenset(("weight",)), frozenset(("running_var",)))
CHANNELS = (frozenset(("running_mean", "running_var")),)
