"""Exact statistics of a training set, written into a model's batch norm layers.

One pass in training mode, every layer under the batch statistics of its own input, the moments of all batches merged in
float64: mean and m/(m-1) variance of the whole set as if it were one batch.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

import normkit as nk

BATCH = 500
Model = TypeVar("Model", bound=nn.Module)


def with_population_statistics(model: Model, x: Tensor) -> Model:
    """A copy of `model` whose running statistics are those of `x`: (N, C, H, W)."""
    model = copy.deepcopy(model).train()
    moments: dict[nn.Module, nk.Moments] = {}
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (values,) = inputs
        new = nk.Moments.of(values, [axis for axis in range(values.dim()) if axis != 1])
        moments[layer] = moments[layer].merge(new) if layer in moments else new

    hooks = [layer.register_forward_pre_hook(note) for layer in norms]
    with torch.no_grad():
        for part in x.split(BATCH):
            model(part)
        for hook, layer in zip(hooks, norms, strict=True):
            hook.remove()
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.copy_(moments[layer].mean)
            layer.running_var.copy_(moments[layer].var(correction=1))
    return model
