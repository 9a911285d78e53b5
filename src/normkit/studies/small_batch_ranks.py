"""Two images on each of several processes: batch norm synchronised over 1, 2, 4 ... of them, against group norm.

A step of R processes is computed by one, which gives the same numbers: batch norm that each `span` of them share is
ghost batch norm with their images as its slice, and the gradients' average over processes is the gradient of the mean
over all images (tests/parallel holds real processes to both). Running statistics move by the images of all processes,
as nk.sync_buffers would merge them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

import normkit as nk

from ..errors import UsageError
from . import data, nets, training
from .rules import more_than
from .small_batch import judged
from .study import Params, Plot, Preset, Result, Run, Study, seeds_of
from .tuned import tuned

NAME = "small_batch_ranks"
RATES = [0.03, 0.12, 0.5]  # with momentum 0.9
EACH = 2  # images on a process
RANKS, MOST = 4, 64


def spans(ranks: int) -> list[int]:
    """Over how many processes statistics are shared: 1, 2, 4 ... while that divides them, and all."""
    found = [1]
    while found[-1] * 2 < ranks and ranks % (found[-1] * 2) == 0:
        found.append(found[-1] * 2)
    return [*found, ranks]


def plan(preset: Preset, ranks: int = RANKS) -> list[Params]:
    arms = [{"norm": "batch", "span": span} for span in spans(ranks)] + [{"norm": "group", "span": 0}]
    steps = 250 if preset.quick else 1500
    return [
        {**arm, "ranks": ranks, "rate": rate, "steps": steps, "seed": seed, "data": preset.data}
        for seed in preset.seed_range()
        for arm in arms
        for rate in RATES
    ]


def run(params: Params) -> Result:
    """error: on the test images; exact: the same with statistics of the training set; valid: what chooses the rate."""
    images = data.load(params["data"], params["seed"])
    model = network(images, params)
    steps = training.Plan(EACH * params["ranks"], params["steps"], params["rate"], decay=True)
    training.train(model, images, steps, params["seed"])
    return judged(model, images, params["norm"])


def network(images: data.Images, params: Params) -> nn.Sequential:
    """The network of one arm."""
    make = partial(nk.GhostBatchNorm2d, virtual_batch_size=EACH * params["span"])
    return nets.conv_net(images, params["norm"], params["seed"], make=make if params["norm"] == "batch" else None)


def error(runs: Sequence[Run], norm: str, span: int = 0, key: str = "error") -> float:
    """Of one seed, at the rate chosen for this arm, %."""
    return 100 * float(tuned(runs, norm=norm, span=span).result[key])


def plot(runs: Sequence[Run]) -> list[Plot]:
    from . import plots

    figure, axes = plots.panels(2, height=3.9)
    seeds = [[run for run in runs if run.params["seed"] == seed] for seed in seeds_of(runs)]
    shared = sorted({run.params["span"] for run in runs if run.params["norm"] == "batch"})
    for index, (key, label) in enumerate((("error", "running statistics"), ("exact", "exact statistics"))):
        groups = [[error(of, "batch", span, key) for of in seeds] for span in shared]
        plots.median_line(axes[0], shared, groups, index, f"batch norm, {label}", shade=key == "error")
    group = plots.median([error(of, "group") for of in seeds])
    plots.line(axes[0], shared, [group] * len(shared), 2, "group norm, 4 groups")
    against = [[error(of, "batch", span) - error(of, "group") for of in seeds] for span in shared]
    plots.difference(axes[1], shared, against, 1, "minus group norm")
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xticks(shared, [str(span) for span in shared])
        axis.minorticks_off()
        plots.legend(axis)
    plots.dress(axes[0], f"{EACH} images on a process", "processes that share statistics", "test error, %")
    plots.dress(axes[1], "Batch norm's error ...", "processes that share statistics", "% points, paired")
    description = (
        "Left: test error in per cent against the number of processes whose images make a batch norm's statistics, "
        "each arm at the rate chosen on validation images; medians over seeds, the shade from the best to the worst. "
        "Right: batch norm's error minus group norm's; mean and 95 % interval."
    )
    return [plots.finish(figure, NAME, "Test error as more processes share their statistics", description)]


def study(ranks: int = RANKS) -> Study:
    """The study over so many processes.

    Raises:
        UsageError: fewer than 2 or more than MOST.
    """
    if not 2 <= ranks <= MOST:
        raise UsageError(f"--ranks must be 2 to {MOST} processes, got {ranks}")
    half = spans(ranks)[-2]
    return Study(
        name=NAME,
        title=f"Small batches on {ranks} processes",
        claim=f"With {EACH} images on each of {ranks} processes batch norm needs the others' images: synchronised over "
        "all of them it errs less than by each process's own, and less than group norm.",
        who="Peng et al. 2018 (MegDet), Wu & He 2018: small batches per device, synchronised or without a batch.",
        experiment=f"The network and the rates of small_batch, every step on {EACH * ranks} images, {EACH} for each of "
        f"{ranks} processes. Batch norm takes its statistics from the images of {', '.join(map(str, spans(ranks)))} of "
        "them; group norm from each image. One process computes the step of all: the numbers are those of so many "
        "processes, to rounding.",
        parts=(
            more_than(f"By each process's own {EACH} images BN errs more than synchronised over {ranks}", 1.0,
                      "% points", "ten images in a thousand",
                      lambda r: error(r, "batch", 1) - error(r, "batch", ranks)),
            more_than(f"Synchronised over {ranks} BN errs less than GN, by", 0.0, "% points",
                      "which to take, whatever the size", lambda r: error(r, "group") - error(r, "batch", ranks)),
            more_than(f"Synchronised over {half} of {ranks} BN errs more than over all", 0.0, "% points",
                      "whether the last of them still counts",
                      lambda r: error(r, "batch", half) - error(r, "batch", ranks)),
        ),
        paper="Peng et al. 2018: a detector trained with 2 images a device and batch norm frozen or by device falls "
        "behind one that synchronises 32; Wu & He 2018: 34.7 % at 2 images per GPU, 24.1 % with group norm.",
        doubt="Small images and a small network; test statistics are those that all processes' images give, which "
        "without nk.sync_buffers a rank alone does not have.",
        advice="With few images per process take nk.convert(model, 'sync'), and a process_group of as many ranks as "
        "make 16 to 32 images where the network is slow; or group norm.",
        papers=("Peng et al. 2018, arXiv:1711.07240", "Wu & He 2018, arXiv:1803.08494"),
        seconds=(1.0, 6.0),
        plan=partial(plan, ranks=ranks),
        run=run,
        plot=plot,
    )  # fmt: skip
