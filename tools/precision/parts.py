"""Modules that a planted net is made of, and how a part of a model is found and exchanged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

LINEAR = (nn.Conv1d, nn.Conv2d, nn.Linear)


class Shared(nn.Module):
    """One norm for two inputs of unlike scale. unlike: by how much; 2 for a factor of 3."""

    def __init__(self, norm: nn.Module, unlike: float = 2.0) -> None:
        super().__init__()
        self.norm, self.unlike = norm, unlike

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) + self.norm((1 + self.unlike) * x + self.unlike * x.detach().abs().mean())


class Checkpointed(nn.Module):
    """A module whose forward is computed again in the backward."""

    def __init__(self, body: nn.Module, checkpoint: Callable[..., Any]) -> None:
        super().__init__()
        self.body, self.checkpoint = body, checkpoint

    def forward(self, x: Tensor) -> Any:
        return self.checkpoint(self.body, x, use_reentrant=False)


class Pair(nn.Module):
    """A network and a copy of it without gradients."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, copy.deepcopy(student).requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        return self.student(x), self.teacher(x.flip(-1))


class Scaled(nn.Module):
    """Channel 0 made small again, so that the net is the same function."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(channels))
        self.factor[0] = 1 / 500  # type: ignore[operator]  # a tensor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor.view(-1, *[1] * (x.dim() - 2))  # type: ignore[operator]  # a tensor


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Exchange the module of this name."""
    above, _, last = name.rpartition(".")
    setattr(model.get_submodule(above), last, module)


def feeders(model: nn.Module, batch: Tensor) -> dict[str, str]:
    """Each batch norm that the data reach and whose gamma is not 0, in order -> the linear layer before it, or ""."""
    made: dict[int, tuple[str, Tensor]] = {}
    found: dict[str, str] = {}
    hooks = []

    def linear(name: str) -> Callable[..., None]:
        return lambda module, args, output: made.__setitem__(id(output), (name, output))

    def norm(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any) -> None:
            if module.weight is not None and bool((module.weight != 0).all()):
                found.setdefault(name, made.get(id(args[0]), ("", batch))[0])

        return hook

    for name, module in model.named_modules():
        if isinstance(module, LINEAR):
            hooks.append(module.register_forward_hook(linear(name)))
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            hooks.append(module.register_forward_pre_hook(norm(name)))
    with torch.no_grad():
        model(batch)
    for handle in hooks:
        handle.remove()
    return found
