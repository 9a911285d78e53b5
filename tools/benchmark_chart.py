"""The chart that docs/benchmarks.md opens with: how many times faster than torch eager, by operation and condition."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from normkit.bench.gains import Gain, conditions, gains
from normkit.bench.results import Document

_COLOURS = ["#1b6ca8", "#2a9d6f", "#e08e2b", "#b5476c", "#7a5fb0"]
_GREY = "#808890"  # read on white and on black
_STYLE: Any = {
    "svg.hashsalt": "normkit", "svg.fonttype": "none", "font.size": 11, "text.color": _GREY, "axes.labelcolor": _GREY,
    "xtick.color": _GREY, "ytick.color": _GREY, "axes.edgecolor": _GREY, "axes.spines.top": False,
    "axes.spines.right": False,
}  # fmt: skip


def chart(figures: str) -> str:
    """The SVG for the figures in docs/data/benchmarks.json: the same bytes every time."""
    rows = Document.from_json(figures).rows
    lines, wanted = gains(rows), conditions(rows)
    bars = [(gain, layout) for gain in lines for layout in _layouts(gain)]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, 0.9 + 0.62 * len(bars)), layout="constrained")
        axis = figure.subplots()
        height = 0.8 / max(1, len(wanted))
        for index, condition in enumerate(wanted):
            values = [gain.ratios.get(condition, {}).get(layout, 0.0) for gain, layout in bars]
            places = [place + (index - (len(wanted) - 1) / 2) * height for place in range(len(bars))]
            drawn = axis.barh(places, values, height, color=_COLOURS[index % len(_COLOURS)], label=condition)
            axis.bar_label(drawn, fmt=lambda value: f"{value:.1f}" if value else "", padding=3, fontsize=9)
        axis.set_yticks(range(len(bars)), [f"{gain.name}, {layout}" for gain, layout in bars])
        axis.invert_yaxis()
        axis.axvline(1.0, color=_GREY, linestyle="--", linewidth=1)
        axis.set_xlabel("times as fast as torch eager (dashed line: equal)")
        figure.legend(loc="outside upper center", ncols=max(1, len(wanted)), frameon=False)  # on no bar
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _layouts(gain: Gain) -> list[str]:
    return list(dict.fromkeys(layout for ratios in gain.ratios.values() for layout in ratios))
