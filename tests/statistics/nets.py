"""Small models and data for the tests of statistics, and the comparison that the contract asks of statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normkit as nk
from tests import tolerances
from tests.cases import generator


class ForeignBatchNorm(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: a forward of its own around F.batch_norm, with dropout and activation inside."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(0.5), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        y = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return self.act(self.drop(y))


class Lookalike(nn.Module):
    """A batch norm that derives from no norm: buffers of the usual names, and plain arithmetic."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 1e-5
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = (b.reshape(1, -1, 1, 1) for b in (self.running_mean, self.running_var))
        return (x - mean) / (var + self.eps).sqrt()


BATCH_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "torch": nn.BatchNorm2d,
    "torch_sync": nn.SyncBatchNorm,
    "normkit": nk.BatchNorm2d,
    "normkit_relu": lambda c: nk.BatchNorm2d(c, activation="relu"),
    "normkit_sync": nk.SyncBatchNorm,
    "normkit_ghost": lambda c: nk.GhostBatchNorm2d(c, virtual_batch_size=2),
    "normkit_renorm": lambda c: nk.BatchRenorm2d(c, warm_up=(0, 0, 0)),
    "foreign": ForeignBatchNorm,
    "lookalike": Lookalike,
}


def net(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    """norm, convolution, norm, dropout, head: (N, 3, 6, 6) -> (N, 2); the same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            norm(3), nn.Conv2d(3, 4, 3), norm(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 2)
        )  # fmt: skip


def data(sizes: Sequence[int] = (4, 7, 2), *, spread: float = 1.0, mean: float = 0.0, std: float = 1.0) -> list[Tensor]:
    """Batches (n, 3, 6, 6) whose means differ by about `spread`."""
    g = generator(1)
    return [mean + spread * torch.randn(1, 3, 1, 1, generator=g) + std * torch.randn(n, 3, 6, 6, generator=g)
            for n in sizes]  # fmt: skip


def assert_statistics(layer: nn.Module, mean: Tensor, var: Tensor) -> None:
    """The layer's buffers within the contract's bounds of float64 values."""
    tolerances.assert_statistics(layer.running_mean, layer.running_var, mean, var)


def state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of everything that a state_dict holds."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Bitwise the same state."""
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), f"{name} changed"
