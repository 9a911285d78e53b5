"""Act 2: training batch norm, forward and backward, against torch eager on a few shapes, within half a minute.

Rules: a shape is compared with float64 before it is timed; the two are timed in pairs whose order is drawn anew each
time (a fixed order biases by up to 30 %); a figure is the median of paired ratios, never of times. The full benchmark
with its peers is `normkit bench`; this is the part of it that fits a demo.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import normkit as nk

from .study import Plot

SHAPES = [
    ((32, 64, 56, 56), "NCHW"),
    ((32, 64, 56, 56), "NHWC"),
    ((32, 256, 14, 14), "NCHW"),
    ((32, 256, 14, 14), "NHWC"),
    ((8, 512, 28, 28), "NCHW"),
    ((1024, 256), "NC"),
]
SECONDS = 3.5  # of timing a shape
FEWEST, MOST = 7, 60  # pairs a shape


@dataclass(frozen=True)
class Timing:
    """Median milliseconds, the median paired ratio torch / normkit with its middle half, and the check."""

    shape: tuple[int, ...]
    layout: str
    normkit_ms: float
    torch_ms: float
    ratio: float
    low: float
    high: float
    pairs: int
    error: float  # largest deviation of the output from float64, as a share of what CONTRACT allows

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(shape: tuple[int, ...], layout: str, seconds: float = SECONDS) -> Timing:
    """Verify, warm up, then time pairs for about `seconds`."""
    x, dy = data(shape, layout)
    ours, theirs = layers(len(shape), shape[1])
    error = check(ours, x)
    for layer in (ours, theirs):
        step(layer, x, dy)
    pairs = _pairs(lambda: _timed(ours, x, dy), lambda: _timed(theirs, x, dy), seconds)
    ratios = sorted(torch_s / normkit_s for normkit_s, torch_s in pairs)
    low, ratio, high = statistics.quantiles(ratios, n=4)
    ours_ms, theirs_ms = (1e3 * statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    return Timing(shape, layout, ours_ms, theirs_ms, ratio, low, high, len(pairs), error)


def data(shape: tuple[int, ...], layout: str) -> tuple[Tensor, Tensor]:
    """x and dy of `shape` in `layout`: normal values with a mean of 2."""
    generator = torch.Generator().manual_seed(0)
    x, dy = torch.randn(shape, generator=generator) + 2, torch.randn(shape, generator=generator)
    if layout == "NHWC":
        x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    return x, dy


def layers(rank: int, channels: int) -> tuple[nn.Module, nn.Module]:
    """normkit's layer and torch's for an input of `rank`."""
    if rank == 2:
        return nk.BatchNorm1d(channels), nn.BatchNorm1d(channels)
    return nk.BatchNorm2d(channels), nn.BatchNorm2d(channels)


def step(layer: nn.Module, x: Tensor, dy: Tensor) -> None:
    """Forward and backward, the gradients of x, weight and bias included."""
    x = x.detach().requires_grad_()
    torch.autograd.backward(layer(x), dy)


def check(layer: nn.Module, x: Tensor) -> float:
    """The largest |y - y64| / (8 u |xhat|), u = 2^-24: above 1 the layer is wrong and must not be timed."""
    dims = [axis for axis in range(x.dim()) if axis != 1]
    wide = x.double()
    mean, var = wide.mean(dims, keepdim=True), wide.var(dims, correction=0, keepdim=True)
    expected = (wide - mean) / (var + 1e-5).sqrt()
    allowed = 8 * 2.0**-24 * expected.abs() + 1e-9  # the last term for values that sit at the mean itself
    error = ((layer(x).detach().double() - expected).abs() / allowed).max().item()
    if not error <= 1:
        raise RuntimeError(f"not timed: the output on {tuple(x.shape)} is {error:.1f} times further off than allowed")
    return error


def _pairs(ours: Callable[[], float], theirs: Callable[[], float], seconds: float) -> list[tuple[float, float]]:
    draw, end = random.Random(0), time.perf_counter() + seconds
    pairs: list[tuple[float, float]] = []
    while len(pairs) < FEWEST or (len(pairs) < MOST and time.perf_counter() < end):
        if draw.random() < 0.5:
            pairs.append((ours(), theirs()))
        else:
            second = theirs()
            pairs.append((ours(), second))
    return pairs


def _timed(layer: nn.Module, x: Tensor, dy: Tensor) -> float:
    start = time.perf_counter()
    step(layer, x, dy)
    return time.perf_counter() - start


def plot(rows: list[dict[str, Any]]) -> list[Plot]:
    """A dot a shape at its ratio, a line over the middle half of the pairs, torch's speed as the dashed line."""
    from . import plots
    from .report import name, number

    figure, (axis,) = plots.panels(1, height=0.9 + 0.42 * len(rows))
    for place, row in enumerate(reversed(rows)):
        colour = plots.SERIES[0] if row["ratio"] >= 1 else plots.SERIES[1]
        axis.plot(
            [row["low"], row["high"]], [place, place], color=colour, linewidth=7, alpha=0.28, solid_capstyle="round"
        )
        axis.plot([row["ratio"]], [place], color=colour, marker="o" if row["ratio"] >= 1 else "s", markersize=9)
        axis.annotate(f"{number(row['ratio'])}×", (1.005, place), xycoords=("axes fraction", "data"), va="center")
    axis.axvline(1.0, **plots.REFERENCE)
    axis.set_yticks(range(len(rows)), [name(row) for row in reversed(rows)])
    axis.set_xlim(0, 1.05 * max(row["high"] for row in rows))
    axis.set_ylim(-0.6, len(rows) - 0.4)
    plots.dress(axis, "Times torch's speed", "", "")
    description = (
        "Dots: how many times faster than torch, the median of the paired ratios (squares: slower). Bands: the "
        "middle half of the pairs. Dashed: torch."
    )
    return [plots.finish(figure, "fast", "Forward and backward of training batch norm against torch", description)]
