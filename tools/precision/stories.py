"""Whole models made sick in the ways that users make them: not one layer, and no size that the rules were made for.

A story is told of trained networks. expected: the rules that may name it; one of them must, above a note.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import normkit as nk

from .made import Batches, Net, settle

STATISTICS = ("NK101", "NK103", "NK104", "NK107")


@dataclass(frozen=True)
class Story:
    """name: what happened. tell(net, model, batches) -> what the doctor is given."""

    name: str
    expected: tuple[str, ...]
    tell: Callable[[Net, Any, Batches], tuple[nn.Module, Batches]]


def _norms(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]


def _parameters_alone(net: Net, model: Any, batches: Batches) -> tuple[nn.Module, Batches]:
    for norm in _norms(model):
        norm.reset_running_stats()
    return model, batches


def _of_other_weights(net: Net, model: Any, batches: Batches) -> tuple[nn.Module, Batches]:
    """The statistics of the same architecture with random weights, over the same data."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(5)
        other = copy.deepcopy(model)
        for module in other.modules():
            if hasattr(module, "reset_parameters") and not hasattr(module, "running_mean"):
                module.reset_parameters()  # type: ignore[operator]  # a layer
    settle(other, batches)
    for norm, source in zip(_norms(model), _norms(other), strict=True):
        norm.running_mean.copy_(source.running_mean)
        norm.running_var.copy_(source.running_var)
    return model, batches


def _four_images(net: Net, model: Any, batches: Batches) -> tuple[nn.Module, Batches]:
    nk.recalibrate(model, [net.settling()[0][:4]], progress=False)
    return model, batches


def _fine_tuned(net: Net, model: Any, batches: Batches) -> tuple[nn.Module, Batches]:
    """Twelve steps towards other answers with momentum 0.001."""
    for norm in _norms(model):
        norm.momentum = 0.001
    _trained(model.train(), net.settling())
    return model.eval(), batches


def _averaged(net: Net, model: Any, batches: Batches) -> tuple[nn.Module, Batches]:
    """The mean of the weights before and after a fine-tuning, with the statistics of the latter."""
    after = copy.deepcopy(model)
    _trained(after.train(), net.settling())
    settle(after.eval(), net.settling())
    with torch.no_grad():
        for p, q in zip(after.parameters(), model.parameters(), strict=True):
            p.lerp_(q, 0.5)
    return after, batches


def _drifted(net: Net, model: Any, batches: Batches) -> tuple[nn.Module, Batches]:
    """Frozen by requires_grad_(False) alone, then run in training mode over other data."""
    for norm in _norms(model):
        norm.momentum = 0.1
    model.requires_grad_(False).train()
    with torch.no_grad():
        for x in net.settling() * 3:
            model(0.3 * x + 0.5)
    return model.eval(), batches


def _rebuilt(net: Net, model: Any, batches: Batches) -> tuple[nn.Module, Batches]:
    """With torch's eps for 1e-3, or 1e-3 for torch's."""
    for norm in _norms(model):
        norm.eps = 1e-5 if norm.eps > 5e-4 else 1e-3
    return model, batches


def _other_scale(net: Net, model: Any, batches: Batches) -> tuple[nn.Module, Batches]:
    """Inputs of 0 to 255 that were to be normalized."""
    return model, [60 * x + 110 for x in batches]


def _trained(model: Any, batches: list[Tensor]) -> None:
    """Twelve steps of SGD towards random answers."""
    g = torch.Generator().manual_seed(7)
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    with torch.enable_grad():
        for step in range(12):
            output = model(batches[step % len(batches)])
            optimizer.zero_grad()
            (output - torch.randn(output.shape, generator=g)).square().mean().backward()
            optimizer.step()


STORIES = (
    Story("a checkpoint of parameters alone", ("NK101",), _parameters_alone),
    Story("the statistics of other weights", STATISTICS, _of_other_weights),
    Story("recalibrated from 4 images", STATISTICS, _four_images),
    Story("fine-tuned with momentum 0.001", STATISTICS, _fine_tuned),
    Story("averaged weights, the last one's statistics", STATISTICS, _averaged),
    Story("frozen by requires_grad alone, then other data", STATISTICS, _drifted),
    Story("rebuilt with another eps", ("NK106", *STATISTICS), _rebuilt),
    Story("inputs of another scale", STATISTICS, _other_scale),
)
BY_NAME = {story.name: story for story in STORIES}
