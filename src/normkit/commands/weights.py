"""A file's weights into a model: the state dict in the file that fits it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .. import _checkpoint, _targets
from ..errors import UsageError

_WRAPPERS = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, Lightning
_COUNTER = "num_batches_tracked"


def load(model: nn.Module, path: Path, part: str | None, name: str) -> None:
    """Load strictly. UsageError: unreadable, several parts that fit, none that fits, another shape.

    part: the place of the state dict in the file ("ema.state_dict"), None: the one that fits. name: of the model.
    """
    states = _checkpoint.state_dicts(_checkpoint.read(path), extra=True)
    found = {place: _unwrapped(state, model) for place, state in states}
    if not found:
        raise UsageError(f"{path} holds no tensors by name")
    if part is not None:
        if part not in found:
            raise UsageError(f"{path} has no part {part!r}; it has {', '.join(map(repr, found))}")
        found = {part: found[part]}
    fitting = {place: tensors for place, tensors in found.items() if not _differences(tensors, model)}
    if len(fitting) > 1:
        raise UsageError(f"{path} has several parts that fit: say which by --part: {', '.join(map(repr, fitting))}")
    if not fitting:
        nearest = min(found.values(), key=lambda tensors: len(_differences(tensors, model)))
        differences = _differences(nearest, model)
        shown = "; ".join(differences[:4]) + (f"; ... ({len(differences)} in all)" if len(differences) > 4 else "")
        raise UsageError(f"{path} does not fit {name}: {shown}")
    (tensors,) = fitting.values()
    try:
        model.load_state_dict(tensors, strict=False)  # strictly but for counters, which older files do not have
    except Exception as error:  # what the model's own loading says
        raise UsageError(f"{path} does not load into {name}: {_targets.line(error)}") from error


def _unwrapped(tensors: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
    """The names without what a wrapper put before all of them, where the model has none such."""
    keys = model.state_dict().keys()
    for prefix in _WRAPPERS:
        if all(key.startswith(prefix) for key in tensors) and not any(key.startswith(prefix) for key in keys):
            tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors


def _differences(tensors: Mapping[str, Any], model: nn.Module) -> list[str]:
    own = model.state_dict()
    missing = [f"{key} is missing" for key in own if key not in tensors and not key.endswith(_COUNTER)]
    beyond = [f"{key} is not in the model" for key in tensors if key not in own]
    others = [f"{key} {why}" for key, value in own.items() if key in tensors and (why := _differs(tensors[key], value))]
    return missing + beyond + others


def _differs(given: Any, own: Any) -> str | None:
    """Why a tensor of the file cannot be the model's, or None."""
    if not isinstance(own, Tensor) or not isinstance(given, Tensor):
        return None if isinstance(own, Tensor) is isinstance(given, Tensor) else f"is a {type(given).__name__}"
    if not is_lazy(own) and given.shape != own.shape:
        return f"has shape {tuple(given.shape)}, the model's has {tuple(own.shape)}"
    if given.is_meta:
        return "has no values (meta device)"
    if given.layout != own.layout or given.is_quantized != own.is_quantized:
        return f"is {'quantized' if given.is_quantized else given.layout}, the model's is not"
    if own.is_floating_point() and not given.is_floating_point():
        return f"has values of {given.dtype}, the model's are {own.dtype}"
    return None
