"""What one training step on a copy shows: how statistics move, and how large gradients are at the norms.

Rules: the model itself is not touched; the random states are given back; a model that cannot be copied shows nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..model.ambient import RandomStates
from ..model.dataflow import cloned
from ..model.recorder import named_leaves
from ..statistics.batches import Feed, call
from .answers import seed
from .state import NormState, State


@dataclass(frozen=True)
class NormStep:
    """One norm in one step. forwards: calls in the forward pass; moves: how often its counter moved in forward and
    backward together. gradient: root mean square at its output, None where none came."""

    forwards: int
    moves: int
    moved_in_backward: int
    gradient: float | None


@dataclass(frozen=True)
class Training:
    """loss: of the step, None where it is not finite or there is none."""

    norms: dict[str, NormStep]
    loss: float | None
    failure: str | None = None


def train(
    model: nn.Module, state: State, batch: Any, forward: Feed | None, loss_fn: Callable[..., Tensor] | None
) -> Training | None:
    """One forward and backward in training mode. Without `loss_fn` the loss is the mean square of all outputs; with it
    `loss_fn(output, target)`, the target being a batch's second entry, or `loss_fn(output)`."""
    try:
        twin = copy.deepcopy(model)
    except Exception:  # evidence that cannot be had
        return None
    devices = {tensor.device for tensor in (*twin.parameters(), *twin.buffers())}
    random = RandomStates(devices)
    try:
        with torch.enable_grad():
            return _step(twin, state, batch, forward, loss_fn)
    except Exception as error:
        return Training({}, None, f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])
    finally:
        random.give_back()


def _step(
    twin: nn.Module, state: State, batch: Any, forward: Feed | None, loss_fn: Callable[..., Tensor] | None
) -> Training:
    if not twin.training:
        twin.train()
    modules = dict(twin.named_modules())
    counts: dict[str, int] = {}
    gradients: dict[str, float] = {}
    norms = [norm for norm in state.norms if norm.graph is None]
    for norm in norms:
        if not isinstance(modules[norm.name], torch.jit.ScriptModule):
            modules[norm.name].register_forward_hook(_hook(norm.name, counts, gradients))
    seed()
    before, batch = _counters(modules, norms), cloned(batch)
    output: Any = (forward or call)(twin, batch)
    after_forward, forwards = _counters(modules, norms), dict(counts)
    loss = _loss(output, batch, loss_fn)
    if loss is not None and loss.requires_grad:
        loss.backward()
    after_backward = _counters(modules, norms)
    steps = {
        norm.name: NormStep(
            forwards.get(norm.name, 0),
            after_backward[norm.name] - before[norm.name],
            after_backward[norm.name] - after_forward[norm.name],
            gradients.get(norm.name),
        )
        for norm in norms
    }
    value = None if loss is None else float(loss.detach())
    return Training(steps, value)


def _hook(name: str, counts: dict[str, int], gradients: dict[str, float]) -> Callable[..., None]:
    def keep(gradient: Tensor) -> None:
        gradients[name] = float(gradient.detach().double().square().mean().sqrt())

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        counts[name] = counts.get(name, 0) + 1
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(keep)

    return hook


def _counters(modules: dict[str, nn.Module], norms: list[NormState]) -> dict[str, int]:
    found = {}
    for norm in norms:
        counter = modules[norm.name]._buffers.get("num_batches_tracked")
        found[norm.name] = 0 if counter is None else int(counter)
    return found


def _loss(output: Any, batch: Any, loss_fn: Callable[..., Tensor] | None) -> Tensor | None:
    if loss_fn is not None:
        target = batch[1:2] if isinstance(batch, (list, tuple)) else ()
        return loss_fn(output, *target)
    leaves = [leaf for _, leaf in named_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return None if not leaves else torch.stack([leaf.float().square().mean() for leaf in leaves]).sum()
