"""What the served page asks of the library: for each section that takes free values, normkit's own result.

    four-numbers  {x, gamma, beta, eps}          -> {y}                        nn.BatchNorm1d
    shared-mean   {maps, norm, groups, image}    -> {y}                        BatchNorm2d, GroupNorm, InstanceNorm2d
    one-step      {weights, rate}                -> {promised, actual}         autograd of w1 w2 ... wm
    scale         {u, w, dy, a, eps}             -> {y, length}                BatchNorm1d of (a w) u, its gradient
    backward      {x, gamma, eps, dy}            -> {dx, dgamma, dbeta}        BatchNorm1d
    test-time     {values, batch, momentum}      -> {running, average, exact}  a layer that trained, then recalibrate

Rules: all in float64; nothing is kept from one question to the next; what does not fit is a ValueError of one line that
says what was expected and what came.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import nn as layers
from ..statistics import recalibrate
from ..statistics.recalibrate import Estimator
from .numbers import four
from .own import MOST

LARGEST = 1e100  # of a number: its square is finite
LAST = 60  # batches: over these the page averages


def answer(asked: Any) -> dict[str, Any]:
    """The library's answer to a section's question, made of finite numbers. ValueError: what was expected."""
    section = asked.get("section") if isinstance(asked, dict) else None
    if not isinstance(section, str) or section not in ANSWERS:
        raise ValueError(f"expected an object with section, one of {', '.join(ANSWERS)}, got {section!r:.40}")
    made = ANSWERS[section](_Asked(asked))
    if not bool(torch.stack([torch.tensor(v, dtype=torch.float64).isfinite().all() for v in made.values()]).all()):
        raise ValueError("the answer is not finite")
    return made


class _Asked:
    """The fields of a question, each looked at when it is taken."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def number(self, name: str, low: float = -LARGEST, high: float = LARGEST) -> float:
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"expected {name} to be a number from {low:g} to {high:g}, got {value!r:.40}")
        return float(value)

    def integer(self, name: str, low: int, high: int) -> int:
        value = self.number(name, low, high)
        if not value.is_integer():
            raise ValueError(f"expected {name} to be an integer, got {value:g}")
        return int(value)

    def numbers(self, name: str, least: int, most: int) -> Tensor:
        return self._tensor(name, (range(least, most + 1),))

    def array(self, name: str, *sizes: range) -> Tensor:
        return self._tensor(name, sizes)

    def choice(self, name: str, among: tuple[str, ...]) -> str:
        value = self._get(name)
        if not isinstance(value, str) or value not in among:
            raise ValueError(f"expected {name} to be one of {', '.join(among)}, got {value!r:.40}")
        return value

    def _get(self, name: str) -> Any:
        if name not in self._fields:
            raise ValueError(f"expected {name}, got {', '.join(map(str, self._fields)):.80}")
        return self._fields[name]

    def _tensor(self, name: str, sizes: tuple[range, ...]) -> Tensor:
        """Nested lists of finite numbers, as many levels as `sizes`, each as long as it allows."""
        try:
            made = torch.tensor(self._get(name), dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            made = torch.empty(0)
        if made.dim() != len(sizes) or not all(n in allowed for n, allowed in zip(made.shape, sizes, strict=True)):
            shape = " x ".join(f"{s.start} to {s[-1]}" if len(s) > 1 else str(s.start) for s in sizes)
            raise ValueError(f"expected {name} to be {shape} numbers")
        if not bool((made.abs() <= LARGEST).all()):
            raise ValueError(f"expected {name} to hold finite numbers of size {LARGEST:g} at most")
        return made


def _four(asked: _Asked) -> dict[str, Any]:
    x = asked.numbers("x", 2, 512).tolist()
    return {"y": four(x, asked.number("gamma"), asked.number("beta"), asked.number("eps", 0))["y"]}


def _maps(asked: _Asked) -> dict[str, Any]:
    x = asked.array("maps", range(1, 7), range(8, 9), range(144, 145))
    groups, image = asked.integer("groups", 1, 8), asked.integer("image", 0, len(x) - 1)
    norm = asked.choice("norm", ("batch", "layer", "instance", "group"))
    if 8 % groups:
        raise ValueError(f"expected groups to divide 8, got {groups}")
    layer: nn.Module = {
        "batch": layers.BatchNorm2d(8),
        "layer": layers.GroupNorm(1, 8),
        "instance": layers.InstanceNorm2d(8),
        "group": layers.GroupNorm(groups, 8),
    }[norm]
    with torch.no_grad():
        return {"y": layer.double()(x.reshape(-1, 8, 12, 12))[image].flatten(1).tolist()}


def _step(asked: _Asked) -> dict[str, Any]:
    weights, rate = asked.numbers("weights", 2, 64).requires_grad_(), asked.number("rate")
    y = weights.prod()
    (gradient,) = torch.autograd.grad(y, weights)
    with torch.no_grad():
        moved = (weights - rate * gradient).prod()
        return {"promised": (-rate * gradient.square().sum()).item(), "actual": (moved - y).item()}


def _scale(asked: _Asked) -> dict[str, Any]:
    w = asked.numbers("w", 1, 16)
    u = asked.array("u", range(2, 513), range(len(w), len(w) + 1))
    dy = asked.numbers("dy", len(u), len(u))
    scaled = (asked.number("a") * w).requires_grad_()
    y = layers.BatchNorm1d(1, eps=asked.number("eps", 0)).double()((u @ scaled)[:, None])[:, 0]
    (gradient,) = torch.autograd.grad((y * dy).sum(), scaled)
    return {"y": y.tolist(), "length": gradient.norm().item()}


def _backward(asked: _Asked) -> dict[str, Any]:
    x = asked.numbers("x", 2, 512).requires_grad_()
    dy = asked.numbers("dy", len(x), len(x))
    layer = layers.BatchNorm1d(1, eps=asked.number("eps", 0)).double()
    nn.init.constant_(layer.weight, asked.number("gamma"))
    given = (x, layer.weight, layer.bias)
    dx, dgamma, dbeta = torch.autograd.grad(layer(x[:, None])[:, 0], given, dy)
    return {"dx": dx.tolist(), "dgamma": dgamma.item(), "dbeta": dbeta.item()}


def _test_time(asked: _Asked) -> dict[str, Any]:
    values, size = asked.numbers("values", 4, MOST), asked.integer("batch", 2, 64)
    if len(values) < size:
        raise ValueError(f"expected at least one batch of {size}, got {len(values)} values")
    layer = layers.BatchNorm1d(1, momentum=asked.number("momentum", 0, 1)).double()
    batches = [batch[:, None] for batch in values[: len(values) // size * size].split(size)]
    with torch.no_grad():
        for batch in batches:
            layer(batch)
    made = {"running": _statistics(layer)}
    estimators: tuple[tuple[str, Estimator], ...] = (("average", "batch_average"), ("exact", "population"))
    for name, estimator in estimators:
        recalibrate(layer, batches[-LAST:], estimator=estimator, progress=False)
        made[name] = _statistics(layer)
    return made


def _statistics(layer: layers.BatchNorm1d) -> list[float]:
    mean, var = layer.running_mean, layer.running_var
    assert mean is not None
    assert var is not None
    return [mean.item(), var.item()]


ANSWERS: dict[str, Callable[[_Asked], dict[str, Any]]] = {
    "four-numbers": _four,
    "shared-mean": _maps,
    "one-step": _step,
    "scale": _scale,
    "backward": _backward,
    "test-time": _test_time,
}
