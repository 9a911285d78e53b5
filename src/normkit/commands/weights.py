"""A file's weights into a model: the state dict in the file that fits it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .. import _checkpoint
from ..errors import UsageError

_WRAPPERS = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, Lightning
_COUNTER = "num_batches_tracked"


def load(model: nn.Module, path: Path, part: str | None, name: str) -> None:
    """Load strictly. UsageError: unreadable, several parts that fit, none that fits, another shape.

    part: the place of the state dict in the file ("ema.state_dict"), None: the one that fits. name: of the model.
    """
    found = {place: _unwrapped(tensors, model) for place, tensors in _checkpoint.state_dicts(_checkpoint.read(path))}
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
    model.load_state_dict(tensors, strict=False)  # strictly but for counters, which older files do not have


def _unwrapped(tensors: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """The names without what a wrapper put before all of them, where the model has none such."""
    keys = model.state_dict().keys()
    for prefix in _WRAPPERS:
        if all(key.startswith(prefix) for key in tensors) and not any(key.startswith(prefix) for key in keys):
            tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors


def _differences(tensors: Mapping[str, Tensor], model: nn.Module) -> list[str]:
    own = model.state_dict()
    missing = [f"{key} is missing" for key in own if key not in tensors and not key.endswith(_COUNTER)]
    beyond = [f"{key} is not in the model" for key in tensors if key not in own]
    shapes = [
        f"{key} has shape {tuple(tensors[key].shape)}, the model's has {tuple(value.shape)}"
        for key, value in own.items()
        if key in tensors and not is_lazy(value) and tensors[key].shape != value.shape
    ]
    return missing + beyond + shapes
