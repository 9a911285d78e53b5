"""Act 2: training batch norm, forward and backward, against torch eager on a few shapes, within half a minute.

Checked and timed by the engine of `normkit bench` (`normkit.bench`): agreement with float64 first, then pairs in random
order, and a figure is the median of paired ratios. The full benchmark with its peers is `normkit bench`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..bench import Case
from ..bench import measure as bench
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
    error: float  # largest deviation from float64 of outputs and gradients, as a share of what the contract allows

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(shape: tuple[int, ...], layout: str, seconds: float = SECONDS) -> Timing:
    """Verify, warm up, then time pairs for about `seconds`."""
    row = bench(Case("batch_norm", shape, layout, threads=torch.get_num_threads()), ("torch",), seconds)
    peer = row.peers["torch"]
    return Timing(shape, layout, row.ms, peer.ms, peer.total, peer.low, peer.high, row.rounds, row.error)


def plot(rows: list[dict[str, Any]]) -> list[Plot]:
    """A dot a shape at its ratio, a line over the middle half of the pairs, torch's speed as the dashed line."""
    from . import plots
    from .report import name, number

    figure, (axis,) = plots.panels(1, height=0.9 + 0.42 * len(rows))
    # one disturbed row's band must not press all dots together
    edge = min(1.05 * max(row["high"] for row in rows), 1.6 * max(row["ratio"] for row in rows))
    for place, row in enumerate(reversed(rows)):
        colour = plots.SERIES[0] if row["ratio"] >= 1 else plots.SERIES[1]
        axis.plot(
            [row["low"], row["high"]], [place, place], color=colour, linewidth=7, alpha=0.28, solid_capstyle="round"
        )
        if row["high"] > edge:
            axis.plot([edge], [place], color=colour, marker=">", markersize=7, clip_on=False)
        axis.plot([row["ratio"]], [place], color=colour, marker="o" if row["ratio"] >= 1 else "s", markersize=9)
        axis.annotate(f"{number(row['ratio'])}×", (1.015, place), xycoords=("axes fraction", "data"), va="center")
    axis.axvline(1.0, **plots.REFERENCE)
    axis.set_yticks(range(len(rows)), [name(row) for row in reversed(rows)])
    axis.set_xlim(0, edge)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    plots.dress(axis, "Times torch's speed", "", "")
    description = (
        "Dots: how many times faster than torch, the median of the paired ratios (squares: slower). Bands: the "
        "middle half of the pairs; an arrow: it goes on. Dashed: torch."
    )
    return [plots.finish(figure, "fast", "Forward and backward of training batch norm against torch", description)]
