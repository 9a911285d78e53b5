"""How a model's statistics are best measured: the running average's lag, the number of samples, the two orders.

The momentum of a running average does not touch training, so one training run serves all momenta: the layers keep each
batch's own statistics (momentum 1) and the averages are formed beside them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import normkit as nk
from normkit.statistics import distance
from normkit.statistics.layers import running_statistics

from .._torch import BatchNormBase
from . import data, nets, training
from .population import with_population_statistics
from .study import Params, Plot, Preset, Result, Run, Study, by_seed
from .verdict import Verdict, bounded, combine, paired, paired_below

BATCHES = [8, 64]
RATE = 0.05
MOMENTA = [0.5, 0.1, 0.01, 0.001]
SAMPLES = [16, 64, 256, 1024, 2000]  # training images, at most
MEASURED = [2, 8, 32, 500]  # images a batch while the statistics are measured
KNOWN = 1000  # images behind these
NORM = BatchNormBase
LOSS, ERROR, APART = 0, 1, 2  # the places in a result
Buffers = list[tuple[Tensor, Tensor]]  # (mean, var) of each norm, (C,) float64


def plan(preset: Preset) -> list[Params]:
    steps = 300 if preset.quick else 3000
    return [
        {"batch": batch, "steps": steps, "rate": RATE, "seed": seed, "data": preset.data}
        for batch in BATCHES
        for seed in preset.seed_range()
    ]


def run(params: Params) -> Result:
    """[loss, error, distance] of each version; distances: from exact statistics, of `parallel` from sequential ones."""
    images = data.load(params["data"])
    torch.manual_seed(params["seed"])
    model = nets.conv_net(images, "batch")
    averages = _train(model, images, params)
    x, y = images.test_x, images.test_y
    exact = with_population_statistics(model, images.train_x[: SAMPLES[-1]]).eval()

    def look(tested: nn.Module, reference: nn.Module) -> list[float]:
        return [*training.test(tested, x, y), _apart(tested, reference)]

    def measured(images_known: Tensor, batch: int, sequential: bool) -> nn.Module:
        return _measured(model, images_known, batch, sequential)

    known = images.train_x[:KNOWN]
    settled = measured(known, MEASURED[-1], True)
    return {
        "exact": look(exact, exact),
        "average": [look(_with(model, average), exact) for average in averages],
        "samples": [look(measured(images.train_x[:n], n, False), exact) for n in SAMPLES],
        "parallel": [look(measured(known, batch, False), settled) for batch in MEASURED],
        "sequential": [look(measured(known, batch, True), settled) for batch in MEASURED],
    }


def _train(model: nn.Module, images: data.Images, params: Params) -> list[Buffers]:
    """Train; the running averages at the end, one a momentum."""
    layers = [layer for layer in model.modules() if isinstance(layer, NORM)]
    for layer in layers:
        layer.momentum = 1.0
    averages = [_buffers(layers) for _ in MOMENTA]

    def note(_: int) -> None:
        new = _buffers(layers)
        for momentum, average in zip(MOMENTA, averages, strict=True):
            for pair, batch in zip(average, new, strict=True):
                for running, value in zip(pair, batch, strict=True):
                    running.lerp_(value, momentum)

    plan = training.Plan(params["batch"], params["steps"], params["rate"])
    training.train(model, images, plan, params["seed"], note)
    return averages


def _buffers(layers: Sequence[nn.Module]) -> Buffers:
    found = (running_statistics(layer) for layer in layers)
    return [(mean.double(), var.double()) for mean, var in found]


def _with(model: nn.Module, buffers: Buffers) -> nn.Module:
    """A copy of the model in evaluation mode with these statistics."""
    model = copy.deepcopy(model).eval()
    layers = [layer for layer in model.modules() if isinstance(layer, NORM)]
    for layer, (mean, var) in zip(layers, buffers, strict=True):
        for buffer, value in zip(running_statistics(layer), (mean, var), strict=True):
            buffer.copy_(value)
    return model


def _apart(model: nn.Module, exact: nn.Module) -> float:
    """Root mean square over all channels of the distance to exact statistics, in standard deviations."""
    ours, theirs = (_buffers([layer for layer in m.modules() if isinstance(layer, NORM)]) for m in (model, exact))
    apart = [distance(*a, *b, 1e-5) for a, b in zip(ours, theirs, strict=True)]
    return float(torch.cat(apart).square().mean().sqrt())


def _measured(model: nn.Module, x: Tensor, batch: int, sequential: bool) -> nn.Module:
    """A copy with the statistics of `x`: (N, C, H, W), measured in batches of this size."""
    model = copy.deepcopy(model)
    nk.recalibrate(model, x.split(batch), sequential=sequential, distributed=False, progress=False)
    return model.eval()


def judge(runs: Sequence[Run]) -> Verdict:
    small, large = (list(by_seed(runs, batch=batch).values()) for batch in BATCHES)
    usual, slow, fast = MOMENTA.index(0.1), MOMENTA.index(0.001), MOMENTA.index(0.5)
    enough, few = SAMPLES.index(1024), SAMPLES.index(16)

    def of(run: Run, key: str, index: int, what: int) -> float:
        return float(run.result[key][index][what])

    def points(run: Run, key: str, index: int) -> float:
        return 100 * of(run, key, index, ERROR)

    return combine([
        paired(f"At batch {BATCHES[0]} and momentum 0.1 exact statistics have the smaller test loss",
               [of(r, "average", usual, LOSS) - r.result["exact"][LOSS] for r in small], 0.0, "nats"),
        paired("A momentum of 0.001 lags: it is farther from exact than 0.1",
               [of(r, "average", slow, APART) - of(r, "average", usual, APART) for r in small], 0.0, "deviations"),
        paired(f"A momentum of 0.5 is noisy: farther from exact at batch {BATCHES[0]} than at {BATCHES[1]}",
               [of(a, "average", fast, APART) - of(b, "average", fast, APART)
                for a, b in zip(small, large, strict=True)], 0.0, "deviations"),
        paired("16 images are farther from exact than four times what 1024 are (independent images: eight)",
                [of(r, "samples", few, APART) - 4 * of(r, "samples", enough, APART) for r in small],
                0.0,
                "deviations"),
        paired_below("1024 images are enough: within a point of all",
                     [abs(points(r, "samples", enough) - points(r, "samples", -1)) for r in small], 1.0, "% points"),
        paired(f"Measured in batches of {MEASURED[0]}, parallel is farther from sequential than in {MEASURED[-1]}",
               [of(r, "parallel", 0, APART) - of(r, "parallel", -1, APART) for r in small], 0.0, "deviations"),
        bounded("Sequential statistics are the same whatever the batch in which they are measured",
                [of(r, "sequential", i, APART) for r in small for i in range(len(MEASURED))], 1e-4, "deviations"),
    ])  # fmt: skip


def plot(runs: Sequence[Run]) -> list[Plot]:
    from . import plots

    figure, axes = plots.panels(3, height=3.7)

    def draw(place: int, x: list[float], groups: list[list[float]], index: int, label: str) -> None:
        band = [min(group) for group in groups], [max(group) for group in groups]
        plots.line(axes[place], x, [plots.median(group) for group in groups], index, label, band)

    def picked(found: list[Run], key: str, count: int) -> list[list[float]]:
        return [[r.result[key][i][APART] for r in found] for i in range(count)]

    for index, batch in enumerate(BATCHES):
        found = list(by_seed(runs, batch=batch).values())
        draw(0, MOMENTA, picked(found, "average", len(MOMENTA)), index,
             f"training batch {batch}")  # fmt: skip
    found = list(by_seed(runs, batch=BATCHES[0]).values())

    draw(1, [float(n) for n in SAMPLES], picked(found, "samples", len(SAMPLES)), 0, "one batch of all")
    for index, key in enumerate(("parallel", "sequential")):
        draw(2, [float(b) for b in MEASURED], picked(found, key, len(MEASURED)), index, key)
    for axis, ticks in ((axes[0], MOMENTA), (axes[1], SAMPLES), (axes[2], MEASURED)):
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        plots.legend(axis)
    plots.dress(axes[0], "The running average", "momentum of the running average", "")
    plots.dress(axes[1], "How many images", "images measured", "")
    plots.dress(axes[2], "The batch in which they are measured", "images a batch while measuring", "")
    description = (
        "Distance of statistics from exact ones, root mean square over channels, in standard deviations; medians over "
        "seeds, shades from the smallest to the largest. Left: the running average, against its momentum, for two "
        "training batches. Middle: against the number of images measured. Right: against the batch in which they are "
        "measured, all layers at once (parallel) and layer by layer (sequential), from what evaluation sees."
    )
    return [plots.finish(figure, "precise_statistics", "How a model's statistics are best measured", description)]


STUDY = Study(
    name="precise_statistics",
    title="Precise statistics",
    claim="The running average is never at rest: it lags with a small momentum and is noisy with a large one. A "
    "thousand images, measured once, replace it; measured layer by layer, in batches of any size.",
    experiment="A network of three convolutions with normkit.BatchNorm2d, trained on real images at a constant rate "
    f"of {RATE} with batches of {BATCHES[0]} and {BATCHES[1]}. The same weights are looked at under running averages "
    f"of several momenta, under statistics of {SAMPLES[0]} to {SAMPLES[-1]:,} training images (the last are called "
    f"exact), and under those of {KNOWN:,} images measured in batches of {MEASURED[0]} to {MEASURED[-1]}, all layers "
    "at once (parallel) and layer by layer (sequential): test loss, test error, and the distance of the statistics.",
    rule="Over seeds, with training batches of 8: exact statistics have a smaller test loss than the average of "
    "momentum 0.1; the average of 0.001 is farther from them than that of 0.1, and that of 0.5 farther at batch 8 than "
    "at 64; 16 images are over four times as far as 1024, which err within a point of all; parallel statistics are "
    "farther from sequential ones when measured in batches of 2 than in batches of 500; sequential ones do not depend "
    "on it (to 1e-4 standard deviations).",
    papers=("Wu & Johnson 2021, arXiv:2105.07576", "Ioffe & Szegedy 2015, arXiv:1502.03167"),
    seconds=(2.5, 10.0),
    plan=plan,
    run=run,
    judge=judge,
    plot=plot,
)
