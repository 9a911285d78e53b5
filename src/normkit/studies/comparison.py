"""The picture of arms trained by `tuned`: accuracy of each arm against something, and a paired difference beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import plots
from .study import Plot, Run, seeds_of

Reading = Callable[..., float]  # from the runs of one seed and a place on the x axis, in %


def compared(
    key: str,
    runs: Sequence[Run],
    places: Sequence[Any],
    arms: Mapping[str, Reading],
    differences: Mapping[str, Reading],
    titles: tuple[str, str, str],
    description: str,
    scale: str = "linear",
    left: str = "Test accuracy",
) -> Plot:
    """titles: of the picture, of the x axis, of the right panel; `scale` of the x axis, "words" for places in words."""
    figure, axes = plots.panels(2)
    seeds = [[run for run in runs if run.params["seed"] == seed] for seed in seeds_of(runs)]
    x = list(range(len(places))) if scale == "words" else list(places)
    for index, (label, of) in enumerate(arms.items()):
        groups = [[of(seed, place) for seed in seeds] for place in places]
        if scale == "words":
            beside = [at + 0.1 * (index - len(arms) / 2) for at in x]
            plots.dots(axes[0], beside, [plots.median(group) for group in groups], index, label)
        else:
            plots.median_line(axes[0], x, groups, index, label)
    for index, (label, of) in enumerate(differences.items()):
        series = list(arms).index(label) if label in arms else index + 1
        apart = [[of(seed, place) for seed in seeds] for place in places]
        beside = [at + 0.1 * index for at in x] if scale == "words" else [at * (1 + 0.06 * index) for at in x]
        plots.difference(axes[1], beside, apart, series, label)
    for axis in axes:
        if scale == "log":
            axis.set_xscale("log")
        axis.set_xticks(x, [str(place) for place in places])
        axis.minorticks_off()
        if len(axis.get_legend_handles_labels()[1]) > 1:
            plots.legend(axis)
    axes[0].set_ylim(0, 104)
    plots.dress(axes[0], left, titles[1], "% right")
    plots.dress(axes[1], titles[2], titles[1], "% points, paired")
    return plots.finish(figure, key, titles[0], description)
