"""Tent: entropy minimization at test time (Wang et al. 2021), by weights and biases of a model's norms alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
Optimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def entropy(logits: Any) -> Tensor:
    """The mean entropy of the classes that logits: (N, classes, *) tell, in nats.

    Raises:
        TypeError: they are no floating-point tensor of two axes or more.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.dim() < 2:
        shown = f"a tensor {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"entropy needs the model to return logits (N, classes, *), got {shown}: wrap the model")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()


class Tent:
    """The parameters of some layers, what moves them, and how they are given back.

    layers: those that are adapted; make: the optimizer, from a list of parameters.
    """

    def __init__(self, layers: Sequence[nn.Module], make: Optimizer) -> None:
        found = {id(p): p for layer in layers for p in layer.parameters(recurse=False)}
        self._parameters, self._make = list(found.values()), make
        self._before: list[tuple[Tensor, bool, Tensor | None]] = []  # values, flags and gradients
        if not self._parameters:
            raise ValueError("the adapted layers have neither weight nor bias: there is nothing for tent to move")
        if any(parameter.is_inference() for parameter in self._parameters):
            raise RuntimeError("tent cannot move parameters made in inference mode: adapt a copy made outside of it")

    def begin(self) -> None:
        """Keep values, flags and gradients; let the parameters be differentiated."""
        self._before = [(p.detach().clone(), p.requires_grad, p.grad) for p in self._parameters]
        for parameter in self._parameters:
            parameter.requires_grad_()
            parameter.grad = None
        self._optimizer = self._made()

    def reset(self) -> None:
        """The values that the block began with, and a new optimizer."""
        self._give_values_back()
        self._optimizer = self._made()

    def _made(self) -> torch.optim.Optimizer:
        """An optimizer. Raises TypeError for what has no step, before a batch is seen."""
        found = self._make(self._parameters)
        if not callable(getattr(found, "step", None)):
            raise TypeError(f"tent must make an optimizer of torch.optim, got a {type(found).__name__}")
        if any(p.default is p.empty and p.kind in _POSITIONAL for p in signature(found.step).parameters.values()):
            raise TypeError(
                f"tent must make an optimizer whose step takes no closure, for a batch is run once, got a "
                f"{type(found).__name__}"
            )
        return found

    def leave(self) -> None:
        """Give back what `begin` kept; may run twice, and where nothing was kept."""
        if self._before:
            self._give_values_back()
            for parameter, (_, differentiated, gradient) in zip(self._parameters, self._before, strict=True):
                parameter.grad = gradient
                parameter.requires_grad_(differentiated)
        self._before = []

    def _give_values_back(self) -> None:
        with torch.no_grad():
            for parameter, (value, *_) in zip(self._parameters, self._before, strict=True):
                parameter.copy_(value)

    def call(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The model's output, detached; then one step down its entropy. A batch without a finite one moves nothing."""
        with torch.inference_mode(False), torch.enable_grad():
            output = model(*args, **kwargs)
            loss = entropy(output)
            if not loss.requires_grad:
                raise RuntimeError(
                    "tent needs the gradients of the model's output, which has none: is its forward under "
                    "torch.no_grad, or its output detached?"
                )
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        if bool(loss.isfinite()):
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = gradient
            self._optimizer.step()
            for parameter in self._parameters:
                parameter.grad = None
        return output.detach()
