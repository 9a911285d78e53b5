"""A net of the table and how it is made healthy; see nets."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tests.surgery.foreign import library, torchvision_model
from torch import Tensor, nn

import normkit as nk

from .aside import ASIDE, MORE_ASIDE
from .sources import BATCHES, SETTLING, crops, digits, sounds

Batches = list[Tensor]
Data = Callable[[int, int], Batches]  # (seed, count) -> batches


@dataclass(frozen=True)
class Net:
    """name; make() -> a new model; data: None for a net of which only the state is judged; how: see above. seed: of the
    weights, and of the batches."""

    name: str
    make: Callable[[], nn.Module]
    data: Data | None
    how: str = "settled"
    seed: int = 0

    @property
    def aside(self) -> bool:
        return self.name in ASIDE | MORE_ASIDE

    def healthy(self) -> nn.Module:
        """The model in evaluation mode."""
        with torch.random.fork_rng(devices=()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' own
            torch.default_generator.manual_seed(self.seed)
            model = self.make().eval().requires_grad_(True)
        if self.how == "settled":
            stir(model, 3 + self.seed)
        if self.how in ("settled", "adapted") and self.data is not None:
            settle(model, self.settling())
        return model

    def settling(self) -> Batches:
        """What the statistics are made of."""
        assert self.data is not None
        return self.data(1 + 10 * self.seed, SETTLING)

    def batches(self) -> Batches | None:
        """What the doctor sees."""
        return None if self.data is None else self.data(2 + 10 * self.seed, BATCHES)


def stir(model: nn.Module, seed: int = 3) -> None:
    """gamma, beta and counters as after a training."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if "norm" in type(module).__name__.lower():
                gamma, beta = (getattr(module, name, None) for name in ("weight", "bias"))
                if isinstance(gamma, nn.Parameter) and bool((gamma != 0).any()):
                    gamma.copy_(torch.rand(gamma.shape, generator=g) + 0.5)
                if isinstance(beta, nn.Parameter):
                    beta.copy_(0.2 * torch.randn(beta.shape, generator=g))
                counter = module._buffers.get("num_batches_tracked")
                if counter is not None:
                    counter.fill_(1000)


def settle(model: nn.Module, batches: Batches) -> None:
    nk.recalibrate(model, batches, progress=False)


def photographs(size: int, batch: int = 8) -> Data:
    return lambda seed, count: crops(size, batch, seed, count=count)


def timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: library("timm").create_model(name, num_classes=10, **options)


def vision(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision_model(name)


def crepe_sounds(frames: int = 32) -> Data:
    return lambda seed, count: sounds(1024, frames, seed, count)


def digits_batches(seed: int, count: int) -> Batches:
    x, _ = digits()
    return list(x.split(200)[:count])  # so many that little is left open


def digits_in(size: int) -> Batches:
    return list(digits()[0].split(size)[:4])
