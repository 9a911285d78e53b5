"""What batches show of each norm while a model runs: the statistics of its inputs, and what goes in and comes out.

Rules: nothing of the model is changed but forwards and hooks, which who calls this gives back; constant memory per
layer; what a norm's statistics are known to is told from how images differ, since values of one image hang together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .._shapes import channel_mask
from ..functional.mask import known_mask
from ..moments import Moments
from ..statistics.accumulator import Accumulator
from ..statistics.layers import Layer, running_statistics
from ..statistics.sample import Sample
from ..statistics.stand_in import arguments, sampling

SATURATED = 4.0  # sigmoid'(4) is 0.018, a fourteenth of its largest value; tanh'(4) is 0.0013


@dataclass
class Traffic:
    """What went through one norm. shape, dtype: of the first input. values: per channel and call, the fewest. calls:
    per batch. largest: |input|. low, high: of each output channel, (C,). saturated: share of |output| > 4."""

    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    order: int = -1
    calls: int = 0
    values: int = 2**62
    largest: float = 0.0
    non_finite: bool = False
    low: Tensor | None = None
    high: Tensor | None = None
    saturated: float = 0.0
    outputs: int = 0
    tail: Tail | None = None


@dataclass(frozen=True, eq=False)
class Tail:
    """Constant positions at the end of an axis: padding, as a norm sees it. share: of all positions. mean, var,
    kept_mean, kept_var: of each channel with and without them, biased, (C,)."""

    axis: int
    share: float
    mean: Tensor
    var: Tensor
    kept_mean: Tensor
    kept_var: Tensor


@dataclass
class Watched(Accumulator):
    """An accumulator that keeps each call's statistics as well, and how images differ.

    means, squares: moments over images of each one's mean and of its mean squared distance from the batch's mean.
    """

    samples: list[Sample] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # which call of its batch each one is
    means: Moments | None = None
    squares: Moments | None = None
    calls_in_batch: int = 0

    @staticmethod
    def of(layer: Layer) -> Watched:
        mean, _ = running_statistics(layer.module)
        empty = Accumulator.empty(mean.numel(), mean.device, layer.per_instance)
        return Watched(empty.moments, empty.within, empty.average)

    def add(self, sample: Sample) -> None:
        self.samples.append(sample)
        self.places.append(self.calls_in_batch)
        self.calls_in_batch += 1
        super().add(sample)

    def look(self, x: Tensor, mask: Tensor | None, per_instance: bool) -> None:
        """How images differ. x: (N, C, *); mask: bool, (N, *) or (N, 1, *), True = a real value."""
        if x.dim() < 2 or x.numel() == 0:
            return
        axes = tuple(range(2, x.dim()))
        if mask is not None:
            each = Moments.of(x.detach(), axes, channel_mask(mask, x))
            counts = torch.as_tensor(each.count).expand_as(each.mean)
            real = counts[:, 0] > 0
            mean, var = each.mean[real], (each.m2 / counts.clamp(min=1))[real]
        else:
            wide = x.detach().float() if x.dtype.itemsize < 4 else x.detach()
            var, mean = torch.var_mean(wide, axes, correction=0) if axes else (torch.zeros_like(wide), wide)
            var, mean = var.double(), mean.double()
        squares = var if per_instance else var + (mean - mean.mean(0)).square()
        finite = (mean + squares).isfinite().all(1)
        new = Moments.of(mean[finite], 0), Moments.of(squares[finite], 0)
        self.means, self.squares = new if self.means is None else (self.means.merge(new[0]), self.squares.merge(new[1]))  # type: ignore[union-attr]  # both or none

    def errors(self) -> tuple[Tensor, Tensor]:
        """Standard errors of the mean and of the variance, (C,), with images as the independent unit."""
        if self.means is None or self.squares is None or int(self.means.count) < 2:
            nothing = torch.full_like(self.moments.mean, float("inf"))
            return nothing, nothing
        n = int(self.means.count)
        return tuple((m.var(correction=1) / n).sqrt() for m in (self.means, self.squares))  # type: ignore[return-value]  # two

    @property
    def images(self) -> int:
        return 0 if self.means is None else int(self.means.count)


def watching(layer: Layer, seen: Watched) -> Callable[..., Any]:
    """A stand-in for the layer's forward: under its input's own statistics, which are noted."""
    order: list[nn.Module] = []
    inner = sampling(layer, seen, order)

    def forward(*args: Any, **kwargs: Any) -> Any:
        x, mask = arguments(layer.module, args, kwargs)
        seen.look(x, mask, layer.per_instance)
        return inner(*args, **kwargs)

    return forward


class TrafficWatch:
    """Hooks on norms that note what goes through. first: the batch that is looked at closely."""

    def __init__(self, norms: dict[str, nn.Module]) -> None:
        self.traffic = {name: Traffic() for name in norms}
        self._counts: dict[str, int] = dict.fromkeys(norms, 0)
        self._reached = 0
        self._handles = [
            module.register_forward_hook(self._hook(name))
            for name, module in norms.items()
            if not isinstance(module, torch.jit.ScriptModule)  # takes no hooks
        ]

    def take_off(self) -> None:
        for handle in self._handles:
            handle.remove()

    def next_batch(self) -> None:
        for name, count in self._counts.items():
            self.traffic[name].calls = max(self.traffic[name].calls, count)
            self._counts[name] = 0

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._counts[name] += 1
            x = next((argument for argument in args if isinstance(argument, Tensor)), None)
            if x is not None and isinstance(output, Tensor) and _is_plain(x) and _is_plain(output):
                if self.traffic[name].order < 0:
                    self.traffic[name].order, self._reached = self._reached, self._reached + 1
                note(self.traffic[name], _values(x), _values(output))

        return hook


def _is_plain(tensor: Tensor) -> bool:
    """Whether it has values in rows and columns: no nested and no sparse one, and no single sample's vector."""
    return tensor.layout is torch.strided and tensor.dim() >= 2 and tensor.numel() > 0


def _values(tensor: Tensor) -> Tensor:
    return tensor.dequantize() if tensor.is_quantized else tensor.detach()


def note(traffic: Traffic, x: Tensor, y: Tensor) -> None:
    """Take one call of a norm. x, y: (N, C, *), or with the channels last."""
    first = not traffic.shape
    if first:
        traffic.shape, traffic.dtype = tuple(x.shape), x.dtype
        traffic.tail = _tail(x)
    traffic.values = min(traffic.values, x.numel() // x.shape[1])
    largest = float(x.abs().max())
    traffic.non_finite |= not torch.isfinite(torch.tensor(largest)).item()
    traffic.largest = max(traffic.largest, largest)
    if y.shape != x.shape or not y.is_floating_point():
        return
    axes = tuple(d for d in range(y.dim()) if d != 1)
    low, high = y.amin(axes), y.amax(axes)
    if traffic.low is None or traffic.high is None or traffic.low.shape != low.shape:
        traffic.low, traffic.high = low, high
    else:
        traffic.low, traffic.high = torch.minimum(traffic.low, low), torch.maximum(traffic.high, high)
    share = float((y.abs() > SATURATED).float().mean())
    traffic.saturated = (traffic.saturated * traffic.outputs + share) / (traffic.outputs + 1)
    traffic.outputs += 1


def _tail(x: Tensor) -> Tail | None:
    """The constant end of the last or last but one axis, where samples differ in its length, unless a mask is
    known that keeps it out. x: (N, C, *)."""
    if x.dim() < 3 or x.shape[0] < 2 or not bool(x.isfinite().all()) or known_mask(x) is not None:
        return None
    for axis in range(x.dim() - 1, max(x.dim() - 3, 1), -1):
        size = x.shape[axis]
        if size < 4:
            continue
        same = x.eq(x.narrow(axis, size - 1, 1)).movedim(axis, 1).flatten(2).all(2)  # (N, size)
        lengths = same.flip(1).int().cumprod(1).sum(1)  # the last position is always the same as itself
        lengths = torch.where((lengths > 1) & (lengths < size), lengths, 0)
        share = float(lengths.sum()) / (x.shape[0] * size)
        if share >= 0.05 and len(lengths.unique()) > 1:
            kept = torch.arange(size, device=x.device) < size - lengths.unsqueeze(1)  # (N, size)
            rows = x.movedim(1, -1).movedim(axis - 1, 1)[kept].flatten(0, -2).double()  # the real values, (m, C)
            both = x.movedim(1, -1).flatten(0, -2).double()
            statistics = [part for values in (both, rows) for part in torch.var_mean(values, 0, correction=0)]
            var, mean, kept_var, kept_mean = (part.cpu() for part in statistics)
            return Tail(axis, share, mean, var, kept_mean, kept_var)
    return None
