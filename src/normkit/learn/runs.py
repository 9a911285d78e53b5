"""The trainings that the page shows and that take too long to make with it: `make learn-data` writes runs.json.

    moving    a tanh net of 6 layers over 300 steps: percentiles of one unit's input, share of saturated units, loss
    gradients |dL/dh| (root mean square) behind each of 30 layers at the start, by activation, gain and norm
    race      216 trainings: norm x start x batch x rate, test error every 20 steps

Rules: real digits (8x8, of scikit-learn); equal seeds give arms of one setting equal weights and equal batches; the
file holds the hash of this one, so a change here without new data is seen by a test.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from importlib.resources import files
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from .. import nn as layers
from ..studies.data import Images, load

GAINS = tuple(round(0.2 * 25 ** (i / 20), 4) for i in range(21))  # 0.2 to 5
ACTIVATIONS = ("linear", "relu", "tanh", "sigmoid", "centred")
DEPTH, WIDTH = 30, 64
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
BATCHES = (8, 32, 128)
STARTS = (0.3, 1.0, 3.0)
NORMS = ("none", "batch", "group")
STEPS, EVERY = 200, 20


def rule() -> str:
    """The hash of this file: what made the data."""
    return hashlib.sha256(files(__package__).joinpath("runs.py").read_bytes()).hexdigest()[:16]


def shipped() -> dict[str, Any]:
    """The data that came with the package."""
    made: dict[str, Any] = json.loads(files(__package__).joinpath("runs.json").read_text(encoding="utf-8"))
    return made


def make() -> Iterator[tuple[str, Any]]:
    """(name, data) one after the other."""
    images = load("digits")
    yield "digits", _six_digits()
    yield "gradients", {"gains": GAINS, "activations": ACTIVATIONS, "norms": _gradients()}
    yield (
        "moving",
        {f"{norm} {gain:g}": _moving(images, norm, gain) for norm in ("none", "batch", "noisy") for gain in (1, 3)},
    )
    grid = product(NORMS, STARTS, BATCHES, RATES)
    curves = [_race(images, *setting) for setting in grid]
    yield (
        "race",
        {"rates": RATES, "batches": BATCHES, "starts": STARTS, "norms": NORMS, "every": EVERY, "curves": curves},
    )


def _six_digits() -> list[list[int]]:
    """The first six images of mnist5k with different labels, averaged to 14x14, as 0 to 255."""
    images = load("mnist5k")
    chosen = [int((images.train_y == label).nonzero()[0]) for label in (0, 2, 3, 5, 7, 8)]
    x = nn.functional.avg_pool2d(images.train_x[chosen], 2)[:, 0]
    low, high = x.amin(), x.amax()
    rows: list[list[int]] = ((x - low) / (high - low) * 255).round().int().flatten(1).tolist()
    return rows


class _Noise(nn.Module):
    """Moves and scales each unit anew at every training step: the shift that Santurkar et al. 2018 put back."""

    def forward(self, x: Tensor) -> Tensor:
        units = x.shape[1]
        return x * (0.25 * torch.randn(units)).exp() + 0.5 * torch.randn(units) if self.training else x


class _Centred(nn.Module):
    """A sigmoid as the next layer sees it whose biases begin at -sum(w) / 2."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sigmoid() - 0.5


def _norm(kind: str, units: int) -> list[nn.Module]:
    match kind:
        case "batch":
            return [layers.BatchNorm1d(units)]
        case "noisy":
            return [layers.BatchNorm1d(units), _Noise()]
        case "group":
            return [layers.GroupNorm(4, units)]
        case _:
            return []


def _linear(inputs: int, outputs: int, gain: float, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(gain / math.sqrt(inputs) * torch.randn(outputs, inputs, generator=generator))
        layer.bias.zero_()
    return layer


def _net(inputs: int, sizes: list[int], classes: int, kind: str, gain: float, act: type[nn.Module]) -> nn.Sequential:
    """Linear, norm, activation, again and again; the norm takes nothing from the generator of the weights."""
    generator, made = torch.Generator().manual_seed(0), list[nn.Module]()
    for size in sizes:
        made += [_linear(inputs, size, gain, generator), *_norm(kind, size), act()]
        inputs = size
    return nn.Sequential(*made, _linear(inputs, classes, 1.0, generator))


def _batches(images: Images, size: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        chosen = torch.randint(len(images.train_y), (size,), generator=generator)
        yield images.train_x[chosen].flatten(1), images.train_y[chosen]


def _step(net: nn.Module, x: Tensor, y: Tensor, rate: float) -> float:
    loss = nn.functional.cross_entropy(net(x), y)
    parameters = list(net.parameters())
    with torch.no_grad():
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.sub_(rate * gradient)
    return loss.item()


def _moving(images: Images, kind: str, gain: float) -> list[dict[str, Any]]:
    """Every tenth step: the 15th, 50th and 85th percentile of unit 0's input, and the saturated share, by layer."""
    torch.manual_seed(2)
    net = _net(64, [48] * 6, images.classes, kind, gain, nn.Tanh)
    probe, seen = images.test_x[:256].flatten(1), list[dict[str, Any]]()
    for step, (x, y) in enumerate(_batches(images, 64, 301)):
        if step % 10 == 0:
            inputs = list[Tensor]()
            hooks = [
                layer.register_forward_hook(lambda _m, given, _out, kept=inputs: kept.append(given[0].detach()))
                for layer in net
                if isinstance(layer, nn.Tanh)
            ]
            with torch.random.fork_rng():
                torch.manual_seed(step)
                loss = nn.functional.cross_entropy(net(probe), images.test_y[:256]).item()
            for hook in hooks:
                hook.remove()
            at = torch.tensor([0.15, 0.5, 0.85])
            seen.append(
                {
                    "percentiles": [[round(v, 3) for v in torch.quantile(z[:, 0], at).tolist()] for z in inputs],
                    "saturated": [round((z.tanh().abs() > 0.95).float().mean().item(), 3) for z in inputs],
                    "loss": round(loss, 4),
                }
            )
        _step(net, x, y, 0.1)
    return seen


def _gradients() -> dict[str, list[list[list[float | None]]]]:
    """By norm, activation and gain: log10 of the gradient behind each layer, over that behind the last; None for 0."""
    acts: dict[str, type[nn.Module]] = {
        "linear": nn.Identity,
        "relu": nn.ReLU,
        "tanh": nn.Tanh,
        "sigmoid": nn.Sigmoid,
        "centred": _Centred,
    }
    return {
        kind: [[_fading(kind, acts[name], gain) for gain in GAINS] for name in ACTIVATIONS]
        for kind in ("none", "batch")
    }


def _fading(kind: str, act: type[nn.Module], gain: float) -> list[float | None]:
    net = _net(WIDTH, [WIDTH] * DEPTH, WIDTH, kind, gain, act).double()
    generator = torch.Generator().manual_seed(3)
    h = torch.randn(64, WIDTH, generator=generator, dtype=torch.float64)
    direction = torch.randn(64, WIDTH, generator=generator, dtype=torch.float64)
    hidden = list[Tensor]()
    for layer in list(net)[:-1]:
        h = layer(h)
        if isinstance(layer, act):
            hidden.append(h)
    gradients = torch.autograd.grad((h * direction).sum(), hidden)
    last = gradients[-1].pow(2).mean().sqrt()
    ratios = [(g.pow(2).mean().sqrt() / last).item() for g in gradients]
    return [round(math.log10(ratio), 2) if ratio > 0 else None for ratio in ratios]


def _race(images: Images, kind: str, gain: float, batch: int, rate: float) -> list[float]:
    """Test error in percent every EVERY steps; 90 after a loss that is no number."""
    torch.manual_seed(4)
    net = _net(64, [32] * 5, images.classes, kind, gain * math.sqrt(2), nn.ReLU)
    errors, lost = list[float](), False
    for step, (x, y) in enumerate(_batches(images, batch, STEPS + 1)):
        if step % EVERY == 0:
            net.eval()
            with torch.no_grad():
                wrong = (net(images.test_x.flatten(1)).argmax(1) != images.test_y).float().mean().item()
            net.train()
            errors.append(90.0 if lost else round(100 * wrong, 1))
        if not lost:
            lost = not math.isfinite(_step(net, x, y, rate))
    return errors
