"""Which layers of a model have statistics to set, and why the others are left alone.

A layer keeps statistics if it has buffers `running_mean` and `running_var`: torch.nn's batch and instance norms,
normkit's, and subclasses or lookalikes from anywhere. Rules: the answer is per layer object, under its first name; a
layer that somebody holds fixed (frozen, in eval mode inside a training model, track_running_stats off) stays fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._torch import COMPILED_FROM, BatchNormBase, InstanceNormBase
from ..model.families import is_frozen
from ..model.select import Selector, matches

IN_EVAL_MODE = "in eval mode while the model is in train mode"


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer that normalizes by channel: its first qualified name, and why it is left alone (None: it is not)."""

    name: str
    module: nn.Module
    left_alone: str | None

    @property
    def per_instance(self) -> bool:
        """Whether the layer averages the statistics of single samples (instance norm)."""
        return isinstance(self.module, InstanceNormBase)


def find(model: nn.Module, only: Selector | None = None) -> list[Layer]:
    """Every batch or instance norm of `model`, each once.

    Raises ValueError where `only` selects none of them.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if _normalizes_channels(module):
            names.setdefault(module, []).append(name)
    chosen = {
        module: only is None or any(matches(only, name, module) for name in found) for module, found in names.items()
    }
    if only is not None and not any(chosen.values()):
        shown = ", ".join(f"{found[0]} ({type(module).__name__})" for module, found in list(names.items())[:5])
        raise ValueError(
            f"only={only!r} selects none of the {len(names)} layers with running statistics"
            f"{'; they are ' + shown if names else ''}{', ...' if len(names) > 5 else ''}"
        )
    trains = _inside_wrappers(model).training
    return [
        Layer(found[0], module, _fixed(module, trains) if chosen[module] else "not selected by only=")
        for module, found in names.items()
    ]


def running_statistics(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """(running_mean, running_var) of a layer that has both; (C,) each."""
    mean, var = layer._buffers["running_mean"], layer._buffers["running_var"]
    assert mean is not None
    assert var is not None
    return mean, var


def _inside_wrappers(model: nn.Module) -> nn.Module:
    """The model whose mode is meant: AveragedModel, timm's EMA and the like may stay in train mode around it."""
    while [name for name, _ in model.named_children()] in (["module"], [COMPILED_FROM]):
        (model,) = model.children()
    return model


def _normalizes_channels(module: nn.Module) -> bool:
    if isinstance(module, torch.jit.ScriptModule):
        return False  # its forward is out of Python's reach
    known = isinstance(module, (BatchNormBase, InstanceNormBase))
    return known or {"running_mean", "running_var"} <= set(module._buffers)


def _fixed(layer: nn.Module, root_trains: bool) -> str | None:
    """Why a layer's statistics must not move, or None."""
    if is_frozen(layer):
        return "frozen"
    mean, var = layer._buffers.get("running_mean"), layer._buffers.get("running_var")
    if mean is None or var is None:
        return "keeps no running statistics"
    if nn.parameter.is_lazy(mean):
        return "not initialized: a lazy layer learns its size from its first forward"
    if mean.dim() != 1 or mean.shape != var.shape:
        return f"its running_mean of shape {tuple(mean.shape)} is not one value per channel"
    if getattr(layer, "track_running_stats", True) is False:
        return "track_running_stats is False"
    if root_trains and not layer.training:
        return IN_EVAL_MODE
    return None
