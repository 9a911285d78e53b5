"""Models that know of no padding, and what they give for each sample of a padded batch when nothing is padded."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from normkit import reference

Norm = Callable[[int], nn.Module]
NORMS: dict[str, Norm] = {
    "batch": nn.BatchNorm1d,
    "group": lambda c: nn.GroupNorm(2, c),
    "instance": lambda c: nn.InstanceNorm1d(c, affine=True),
}


class Chomp(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.size].contiguous()


class TemporalBlock(nn.Module):
    """Bai et al. (2018): dilated causal convolutions, here with norms."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        padding = (kernel - 1) * dilation
        self.net = nn.Sequential(
            weight_norm(nn.Conv1d(inputs, outputs, kernel, padding=padding, dilation=dilation)),
            Chomp(padding), norm(outputs), nn.ReLU(),
            weight_norm(nn.Conv1d(outputs, outputs, kernel, padding=padding, dilation=dilation)),
            Chomp(padding), norm(outputs), nn.Sigmoid(),
        )  # fmt: skip
        self.skip = nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.net(x) + self.skip(x))


def tcn(norm: Norm) -> nn.Module:
    return nn.Sequential(TemporalBlock(3, 8, 3, 1, norm), TemporalBlock(8, 8, 3, 2, norm), nn.Conv1d(8, 5, 1))


class UNet(nn.Module):
    """Two levels. up: "transposed" (cropped to the skip), "size" (upsampled to it), "pad" (a transposed convolution
    padded to it). pool: a layer that halves."""

    def __init__(self, norm: Norm, up: str = "transposed", pool: nn.Module | None = None) -> None:
        super().__init__()
        self.up = up
        self.pool = pool or nn.MaxPool1d(2)
        self.down = nn.ModuleList([self._block(3, 8, norm), self._block(8, 8, norm)])
        self.middle = self._block(8, 8, norm)
        kernel = {"transposed": 4, "pad": 2}.get(up)
        self.widen = [nn.ConvTranspose1d(8, 8, kernel, 2) if kernel else nn.Identity() for _ in range(2)]
        self.widen = nn.ModuleList(self.widen)
        self.out = nn.ModuleList([self._block(16, 8, norm) for _ in range(2)])
        self.head = nn.Conv1d(8, 2, 1)

    @staticmethod
    def _block(inputs: int, outputs: int, norm: Norm) -> nn.Module:
        return nn.Sequential(nn.Conv1d(inputs, outputs, 3, padding=1), norm(outputs), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = self.pool(x)
        x = self.middle(x)
        for widen, out in zip(self.widen, self.out, strict=True):
            skip = skips.pop()
            if self.up == "size":
                x = F.interpolate(x, size=skip.shape[-1], mode="linear")
            else:
                x = widen(x)
                x = F.pad(x, (0, skip.shape[-1] - x.shape[-1])) if self.up == "pad" else x[..., : skip.shape[-1]]
            x = out(torch.cat([skip, x], 1))
        return self.head(x)


class ChannelsLast(nn.Module):
    """(N, T, C) as speech models have it: layer norms, a gate, a depthwise convolution."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.first, self.last = nn.LayerNorm(6), nn.LayerNorm(6)
        self.gate, self.depthwise = nn.Conv1d(6, 12, 1), nn.Conv1d(6, 6, 5, padding=2, groups=6)
        self.norm = norm(6)
        self.out = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).transpose(1, 2)
        h = F.silu(self.norm(self.depthwise(F.glu(self.gate(h), 1))))
        return self.last(x + self.out(h.permute(0, 2, 1)))


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """In float64, with parameters and running statistics away from where they begin."""
    random = torch.Generator().manual_seed(seed)
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=random, dtype=torch.float64)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer += torch.randn(buffer.shape, generator=random, dtype=buffer.dtype)
            elif name.endswith("running_var"):
                buffer += torch.rand(buffer.shape, generator=random, dtype=buffer.dtype)
    return model


def batch(shape: Sequence[int], lengths: Sequence[int], dim: int, junk: float = 0.0, seed: int = 1) -> Tensor:
    """A padded batch, junk behind each sample's end."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for sample, length in enumerate(lengths):
        one = x[sample]
        axis = dim % x.dim() - 1
        one.narrow(axis, length, one.shape[axis] - length).fill_(junk)
    return x


def apart(x: Tensor, lengths: Sequence[int], dim: int) -> list[Tensor]:
    """Each sample of a batch alone, without its padding."""
    return [x[n : n + 1].narrow(dim, 0, length) for n, length in enumerate(lengths)]


def together(model: nn.Module, samples: Sequence[Any], call: Callable[[nn.Module, Any], Tensor]) -> list[Tensor]:
    """What a model in training gives for samples none of which is padded: one thread for each, that meet at each batch
    norm, which gets the values of all of them side by side and is the reference's. Moves the running statistics."""
    barrier, places, outputs = threading.Barrier(len(samples)), threading.local(), [None] * len(samples)
    failed: list[BaseException] = []

    def meeting(norm: nn.Module) -> Callable[[Tensor], Tensor]:
        inputs: list[Any] = [None] * len(samples)
        results: list[Any] = [None] * len(samples)

        def forward(x: Tensor) -> Tensor:
            inputs[places.own] = x
            if barrier.wait() == 0:
                values = torch.cat([one.movedim(1, -1).flatten(0, -2) for one in inputs])  # (m, C)
                y, mean, var = reference.batch_norm(values, norm.weight, norm.bias, norm.eps)
                m, momentum = len(values), norm.momentum
                with torch.no_grad():
                    norm.running_mean += momentum * (mean - norm.running_mean)
                    norm.running_var += momentum * (var * m / (m - 1) - norm.running_var)
                parts = y.split([one.numel() // one.shape[1] for one in inputs])
                for place, (part, one) in enumerate(zip(parts, inputs, strict=True)):
                    results[place] = part.view(one.movedim(1, -1).shape).movedim(-1, 1)
            barrier.wait()
            return results[places.own]

        return forward

    def run(place: int) -> None:
        places.own = place
        try:
            outputs[place] = call(model, samples[place])
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.forward = meeting(norm)
    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(samples))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for norm in norms:
        del norm.forward
    if failed:
        raise failed[0]
    return outputs  # type: ignore[return-value]  # all are there


def twins(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    return model, copy.deepcopy(model)
