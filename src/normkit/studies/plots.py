"""Pictures as inline SVG that takes its colours and its font from the page, so one picture serves light and dark.

Matplotlib draws with stand-in colours (#0a00NN); `finish` turns each into a CSS variable of the report. Lines carry
their name at their end as well as a marker and a dash: colour alone never tells two of them apart.
"""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from .study import Plot

INK, MUTED, GRID = "#0a0001", "#0a0002", "#0a0003"
SERIES = ["#0a0011", "#0a0012", "#0a0013", "#0a0014", "#0a0015"]
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid"} | {c: f"--series-{i + 1}" for i, c in enumerate(SERIES)}
_MARKERS = "osD^v"
_DASHES: list[Any] = ["-", (0, (6, 1.5)), (0, (3, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5))]
REFERENCE: dict[str, Any] = {"color": MUTED, "linestyle": (0, (2, 3)), "linewidth": 1.1, "zorder": 1}

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "normkit",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "ytick.left": False,
}


def panels(count: int, share_y: bool = False, height: float = 3.5) -> tuple[Figure, list[Axes]]:
    """A figure of `count` axes side by side, one report column wide."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10.4, height), layout="constrained")
        axes = figure.subplots(1, count, sharey=share_y, squeeze=False)[0]
        figure.get_layout_engine().set(w_pad=0.12)  # type: ignore[union-attr, call-arg]  # constrained layout has it
    return figure, list(axes)


def line(axis: Axes, x: Sequence[float], y: Sequence[float], index: int, label: str, band: Any = None) -> None:
    """One series; `band` is an optional (low, high) pair of sequences drawn as a shade."""
    axis.plot(
        x,
        y,
        color=SERIES[index],
        linestyle=_DASHES[index],
        marker=_MARKERS[index],
        markersize=4.5,
        linewidth=2,
        label=label,
        clip_on=True,
    )
    if band is not None:
        axis.fill_between(x, band[0], band[1], color=SERIES[index], alpha=0.14, linewidth=0)


def median_line(
    axis: Axes, x: Sequence[float], groups: Sequence[Sequence[float]], index: int, label: str, shade: bool = True
) -> None:
    """The median of each group; the shade reaches from its smallest to its largest."""
    band = ([min(group) for group in groups], [max(group) for group in groups]) if shade else None
    line(axis, x, [median(group) for group in groups], index, label, band)


def mean_line(axis: Axes, x: Sequence[float], groups: Sequence[Sequence[float]], index: int, label: str) -> None:
    """The mean of each group; the band is its 95 % interval."""
    from .verdict import interval

    lows, highs = zip(*(interval(group) for group in groups), strict=True)
    line(axis, x, [statistics.fmean(group) for group in groups], index, label, (lows, highs))


def dots(axis: Axes, x: Sequence[float], y: Sequence[float], index: int, label: str) -> None:
    """Marks without a line, for what has no order."""
    axis.plot(x, y, color=SERIES[index], linestyle="none", marker=_MARKERS[index], markersize=7, label=label)


def lone(axis: Axes, x: float, y: float, marker: str, label: str) -> None:
    """One arm that was tried at one place, in the colour of the text."""
    axis.plot([x], [y], color=INK, linestyle="none", marker=marker, markersize=8, markeredgewidth=1.8, label=label)


def difference(
    axis: Axes, x: Sequence[float], groups: Sequence[Sequence[float]], index: int = 2, label: str = ""
) -> None:
    """Paired differences: the mean over seeds with its 95 % interval, and the line of no difference."""
    from .verdict import interval

    means = [statistics.fmean(group) for group in groups]
    ends = [interval(group) for group in groups]
    bars = [[m - low for m, (low, _) in zip(means, ends, strict=True)],
            [high - m for m, (_, high) in zip(means, ends, strict=True)]]  # fmt: skip
    axis.errorbar(x, means, yerr=bars, color=SERIES[index], linestyle="none", marker=_MARKERS[index], markersize=5,
                  elinewidth=2, capsize=4, label=label or None)  # fmt: skip
    axis.axhline(0.0, **REFERENCE)


def mark(axis: Axes, x: Sequence[float], y: Sequence[float], index: int) -> None:
    """Crosses for runs that diverged."""
    axis.plot(x, y, color=SERIES[index], linestyle="none", marker="x", markersize=6, markeredgewidth=1.6)


def dress(axis: Axes, title: str, x_label: str, y_label: str) -> None:
    axis.set_title(title, loc="left", fontweight="bold", fontsize=12, pad=12, color=INK)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)


def decades(axis: Axes, values: Sequence[float]) -> None:
    """A logarithmic y axis over percentages, with plain numbers at 1, 2, 5, 10, 20 ... around `values`."""
    ladder = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]
    low = max((tick for tick in ladder if tick <= min(values)), default=ladder[0])
    high = min((tick for tick in ladder if tick >= max(values)), default=ladder[-1])
    ticks = [tick for tick in ladder if low <= tick <= max(high, 2 * low)]
    axis.set_yscale("log")
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_ylim(ticks[0], ticks[-1])


def legend(axis: Axes, where: Any = "best", columns: int = 2) -> None:
    """Names of the series; where: as matplotlib has it, or "below" the dressed axes, where nothing is covered."""
    place: dict[str, Any] = {"loc": where, "handlelength": 2.6}
    if where == "below":
        under = -0.22 if axis.get_xlabel() else -0.12
        place = {"loc": "upper left", "bbox_to_anchor": (-0.04, under), "ncols": columns, "handlelength": 2.2,
                 "columnspacing": 1.0, "borderpad": 0.2}  # fmt: skip
    axis.legend(**place, frameon=False, fontsize=10, labelcolor=INK)


def median(values: Sequence[float | None]) -> float:
    """Median with a missing value (a run that diverged) counted as the largest."""
    return statistics.median([float("inf") if value is None else value for value in values])


def finish(figure: Figure, key: str, title: str, description: str) -> Plot:
    """The figure as a titled, described SVG whose ids start with `key`, so that many fit on one page.

    The values of a mark are under the pointer.
    """
    values = _values(figure)
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Plot(title, description, _inline(_with_values(buffer.getvalue(), values), key, title, description))


def _values(figure: Figure) -> dict[str, list[str]]:
    """What each mark of a series says, by the id that its line gets."""
    found: dict[str, list[str]] = {}
    for axis in figure.axes:
        whole = {id(part[0]): part.get_label() for part in axis.containers if isinstance(part, ErrorbarContainer)}
        for line in axis.lines:
            if str(line.get_marker()) not in _MARKERS + "x+":  # a line alone, or the end of an interval
                continue
            gid, label = f"series-{len(found)}", str(whole.get(id(line), line.get_label()))
            line.set_gid(gid)
            name = "" if label.startswith("_") else f"{label}: "
            points = zip(np.atleast_1d(line.get_xdata()), np.atleast_1d(line.get_ydata()), strict=True)
            found[gid] = [f"{name}{y:.4g} at {_at(axis, float(x))}" for x, y in points if np.isfinite(y)]
    return found


def _at(axis: Axes, x: float) -> str:
    """A place on the x axis, by the name of the tick that is meant."""
    names = {float(t): label.get_text() for t, label in zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)}
    near = min(names, key=lambda place: abs(place - x), default=x)
    named = axis.get_xscale() == "linear" and abs(near - x) < 0.5 and _is_text(names.get(near, ""))
    return names[near] if named else f"{x:.4g}"


def _is_text(label: str) -> bool:
    return bool(label) and not re.fullmatch(r"[-\u2212]?[\d.]+", label)


def _with_values(svg: str, values: dict[str, list[str]]) -> str:
    """The drawing with a place to point at around each mark."""
    for gid, texts in values.items():
        group = re.search(rf'<g id="{gid}">.*?(?=\n   <g id=|\n  </g>)', svg, flags=re.S)
        marks = re.findall(r'<use xlink:href="#[^"]*" x="([^"]*)" y="([^"]*)"', group[0]) if group else []
        if group is None or len(marks) != len(texts):  # some lie outside of the axes
            continue
        places = "".join(
            f'<circle cx="{x}" cy="{y}" r="8" fill="none" pointer-events="all"><title>{escape(text)}</title></circle>'
            for (x, y), text in zip(marks, texts, strict=True)
        )
        svg = svg[: group.end()].rstrip().removesuffix("</g>") + places + "</g>" + svg[group.end() :]
    return svg


_LIGHT = {
    "--ink": "#1c1f26",
    "--muted": "#5c6270",
    "--grid": "#dcdad3",
    "--series-1": "#1f5fbf",
    "--series-2": "#c4561a",
    "--series-3": "#147d64",
    "--series-4": "#8a3ea8",
    "--series-5": "#5f6470",
}
_DARK = {
    "--ink": "#ebe9e4",
    "--muted": "#a3a8b3",
    "--grid": "#383c45",
    "--series-1": "#84b3ff",
    "--series-2": "#ff9f66",
    "--series-3": "#5fd1b2",
    "--series-4": "#d49bf0",
    "--series-5": "#a3a8b3",
}


def standalone(plot: Plot) -> str:
    """The picture as a file of its own, with the report's colours, light and dark."""

    def variables(colours: dict[str, str]) -> str:
        return ";".join(f"{name}:{value}" for name, value in colours.items())

    style = f"svg{{{variables(_LIGHT)};--font:sans-serif}}text{{fill:var(--ink)}}"
    style += f"@media(prefers-color-scheme:dark){{svg{{{variables(_DARK)}}}}}"
    head, body = plot.svg.split(">", 1)
    return f"{head}><style>{style}</style>{body.rstrip()}\n"


def _inline(svg: str, key: str, title: str, description: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r"url\(#", f"url(#{key}-", svg)
    svg = re.sub(r'href="#', f'href="#{key}-', svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    opening = f'<svg role="img" aria-labelledby="{key}-title {key}-description" class="plot"'
    named = f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-description">{escape(description)}</desc>'
    svg = re.sub(r'(<svg[^>]*?)\s(?:width|height)="[^"]*pt"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\s(?:width|height)="[^"]*pt"', r"\1", svg, count=1)
    head, body = svg.split(">", 1)
    return head.replace("<svg", opening, 1) + ">" + named + body
