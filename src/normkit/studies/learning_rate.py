"""A deep network with and without batch norm over a grid of learning rates, with ReLU and with sigmoid.

Plain SGD, so that the rate is the whole step size. Both networks start as suits them best (He or Glorot) and differ in
nothing but the norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from . import data, nets, training
from .study import Params, Plot, Preset, Result, Run, Study, seeds_of
from .verdict import Verdict, combine, paired, paired_below, paired_ratio

RATES = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}
NORMS = ["none", "batch"]
DEPTH, WIDTH, BATCH = 10, 64, 64
EVERY = 10  # steps between two looks at the test accuracy
TRAINS, TARGET = 0.5, 0.7  # accuracy at the end that counts as training at all; accuracy whose first step is noted


def plan(preset: Preset) -> list[Params]:
    steps = 120 if preset.quick else 600
    return [
        {"activation": activation, "norm": norm, "rate": rate, "steps": steps, "seed": seed, "data": preset.data}
        for activation in ACTIVATIONS
        for norm in NORMS
        for rate in RATES
        for seed in preset.seed_range()
    ]


def run(params: Params) -> Result:
    """Test accuracy every EVERY steps in eval mode, as a user would see it; a run that diverges keeps accuracy 0."""
    images = data.load(params["data"])
    torch.manual_seed(params["seed"])
    model = nets.deep_mlp(images, params["norm"], ACTIVATIONS[params["activation"]], DEPTH, WIDTH)
    curve: list[float] = []

    def look(step: int) -> None:
        if step % EVERY == 0:
            model.eval()
            curve.append(1 - training.test(model, images.test_x[:1000], images.test_y[:1000])[1])
            model.train()

    plan = training.Plan(BATCH, params["steps"], params["rate"], momentum=0.0)
    finished = training.train(model, images, plan, params["seed"], look)
    curve += [0.0] * (params["steps"] // EVERY - len(curve))
    reached = [EVERY * (i + 1) for i, accuracy in enumerate(curve) if accuracy >= TARGET]
    return {"curve": curve, "accuracy": curve[-1] if finished else 0.0, "steps": reached[0] if reached else None}


def judge(runs: Sequence[Run]) -> Verdict:
    seeds = seeds_of(runs)
    rates = [_largest_rate(runs, "batch", s) / _largest_rate(runs, "none", s) for s in seeds]
    steps = [_fewest_steps(runs, "none", s) / _fewest_steps(runs, "batch", s) for s in seeds]
    plain, normed = ([100 * _best(runs, "sigmoid", norm, s) for s in seeds] for norm in NORMS)
    ahead = [b - a for a, b in zip(plain, normed, strict=True)]
    return combine(
        [
            paired_ratio(
                "The largest rate that trains the ReLU network is over three times larger with BN", rates, 3.0
            ),
            paired_ratio(f"At each one's best rate BN reaches {TARGET:.0%} in fewer steps", steps, 1.0),
            paired("Each at its best rate, BN lifts the sigmoid network by over 30 points", ahead, 30.0, "% points"),
            paired_below("Without BN the sigmoid network does not train at any rate", plain, 100 * TRAINS, "% right"),
        ]
    )


def _of(runs: Sequence[Run], activation: str, norm: str, seed: int) -> list[Run]:
    wanted = {"activation": activation, "norm": norm, "seed": seed}
    return [run for run in runs if wanted.items() <= run.params.items()]


def _largest_rate(runs: Sequence[Run], norm: str, seed: int) -> float:
    """The largest rate that trains; half a decade under the grid where none does."""
    rates = [r.params["rate"] for r in _of(runs, "relu", norm, seed) if r.result["accuracy"] >= TRAINS]
    return max(rates, default=RATES[0] / 3)


def _fewest_steps(runs: Sequence[Run], norm: str, seed: int) -> float:
    """Steps to the target at the best rate; one look more than the budget where no rate reaches it."""
    chosen = _of(runs, "relu", norm, seed)
    return min(run.result["steps"] or run.params["steps"] + EVERY for run in chosen)


def _best(runs: Sequence[Run], activation: str, norm: str, seed: int) -> float:
    return max(run.result["accuracy"] for run in _of(runs, activation, norm, seed))


def plot(runs: Sequence[Run]) -> list[Plot]:
    from . import plots

    figure, axes = plots.panels(3, share_y=True)
    for axis, activation in zip(axes, ACTIVATIONS, strict=False):
        for index, norm in enumerate(NORMS):
            _against_rate(axis, runs, activation, norm, index)
        axis.set_xscale("log")
        plots.dress(axis, f"{DEPTH} layers, {activation}", "learning rate", "test accuracy" if axis is axes[0] else "")
    for index, norm in enumerate(NORMS):
        _against_step(axes[2], runs, norm, index)
    axes[2].axhline(TARGET, **plots.REFERENCE)
    plots.dress(axes[2], "relu, each at its best rate", "step", "")
    axes[0].set_ylim(-0.03, 1.0)
    plots.legend(axes[2], "lower right")
    description = (
        f"Test accuracy after training; lines are medians over seeds, shades reach from the worst to the best seed. "
        f"Left: a ReLU network of {DEPTH} layers against the learning rate, without and with batch norm. Middle: the "
        f"same with sigmoid. Right: accuracy during training of the ReLU network at the rate that ends best; dashed "
        f"is {TARGET:.0%}."
    )
    return [plots.finish(figure, "learning_rate", "The learning rates that train", description)]


LABELS = {"none": "no normalization", "batch": "batch norm"}


def _against_rate(axis: Any, runs: Sequence[Run], activation: str, norm: str, index: int) -> None:
    from . import plots

    groups = [
        [
            r.result["accuracy"]
            for s in seeds_of(runs)
            for r in _of(runs, activation, norm, s)
            if r.params["rate"] == rate
        ]
        for rate in RATES
    ]
    band = [min(group) for group in groups], [max(group) for group in groups]
    plots.line(axis, RATES, [plots.median(group) for group in groups], index, LABELS[norm], band)


def _against_step(axis: Any, runs: Sequence[Run], norm: str, index: int) -> None:
    from . import plots

    chosen = [run for seed in seeds_of(runs) for run in _of(runs, "relu", norm, seed)]
    best = max(RATES, key=lambda rate: plots.median([r.result["accuracy"] for r in chosen if r.params["rate"] == rate]))
    curves = list(zip(*(run.result["curve"] for run in chosen if run.params["rate"] == best), strict=True))
    steps = [EVERY * (i + 1) for i in range(len(curves))]
    band = [min(c) for c in curves], [max(c) for c in curves]
    plots.line(axis, steps, [plots.median(c) for c in curves], index, f"{LABELS[norm]}, rate {best:g}", band)


STUDY = Study(
    name="learning_rate",
    title="The learning rates that train",
    claim="A deep network with batch norm trains at larger learning rates and in fewer steps, and a deep sigmoid "
    "network trains only with it.",
    experiment=f"A fully connected network of {DEPTH} layers of {WIDTH} units on real images (averaged down to "
    f"14x14), with and without normkit.BatchNorm1d before each activation, plain SGD with batches of {BATCH}, "
    f"eight learning rates from 0.003 to 10. The test accuracy is taken in eval mode.",
    rule=f"A rate trains if the accuracy ends at {TRAINS} or more. Over seeds: the largest rate that trains is more "
    f"than three times larger with BN; at each network's best rate BN reaches an accuracy of {TARGET} in fewer "
    f"steps; at its best rate the sigmoid network is more than 0.3 more accurate with BN, and stays under "
    f"{TRAINS} without.",
    papers=("Ioffe & Szegedy 2015, arXiv:1502.03167, section 4", "Bjorck et al. 2018, arXiv:1806.02375"),
    seconds=(0.2, 1.0),
    plan=plan,
    run=run,
    judge=judge,
    plot=plot,
)
