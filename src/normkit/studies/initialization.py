"""How much the scale of the start matters, with and without batch norm: gains from 0.1 to 10 on He's start."""

from __future__ import annotations

from collections.abc import Sequence

from . import data, nets
from .rules import less_than, more_than, times
from .study import Params, Plot, Preset, Result, Run, Study, seeds_of
from .tuned import accuracy, fitted

GAINS = [0.1, 0.3, 0.5, 1.0, 2.0, 3.0, 10.0]
RATES = [0.01, 0.1, 1.0, 10.0]
NORMS: tuple[nets.Norm, ...] = ("none", "batch")
DEPTH = 10
TRAINS = 50.0  # % right


def plan(preset: Preset) -> list[Params]:
    steps = 60 if preset.quick else 150
    return [
        {"norm": norm, "gain": gain, "rate": rate, "steps": steps, "seed": seed, "data": preset.data}
        for seed in preset.seed_range()
        for norm in NORMS
        for gain in GAINS
        for rate in RATES
    ]


def run(params: Params) -> Result:
    """As tuned.fitted."""
    images = data.load(params["data"], params["seed"])
    model = nets.deep_mlp(images, params["norm"], "relu", DEPTH, params["seed"], gain=params["gain"])
    return fitted(model, images, params)


def _range(runs: Sequence[Run], norm: str) -> float:
    """Largest over smallest gain that trains, 0.5 where none does."""
    good = [gain for gain in GAINS if accuracy(runs, norm=norm, gain=gain) >= TRAINS]
    return max(good) / min(good) if good else 0.5


PARTS = (
    times("Batch norm widens the range of gains that train", 5.0, "half a decade: a start found without care",
          lambda r: _range(r, "batch") / _range(r, "none")),
    more_than("At gain 0.1 BN is ahead", 30.0, "% points", "between training and not training",
              lambda r: accuracy(r, norm="batch", gain=0.1) - accuracy(r, norm="none", gain=0.1)),
    more_than("At gain 10 BN is ahead", 30.0, "% points", "between training and not training",
              lambda r: accuracy(r, norm="batch", gain=10.0) - accuracy(r, norm="none", gain=10.0)),
    less_than("Under BN the worst gain is behind gain 1 by", 10.0, "% points", "a reader would still call that trained",
              lambda r: accuracy(r, norm="batch", gain=1.0) - min(accuracy(r, norm="batch", gain=g) for g in GAINS)),
)  # fmt: skip


def plot(runs: Sequence[Run]) -> list[Plot]:
    from . import plots

    figure, axes = plots.panels(2)
    groups = {
        norm: [[accuracy(_of(runs, seed), norm=norm, gain=gain) for seed in seeds_of(runs)] for gain in GAINS]
        for norm in NORMS
    }
    for index, norm in enumerate(NORMS):
        label = {"none": "no norm", "batch": "batch norm"}[norm]
        plots.median_line(axes[0], GAINS, groups[norm], index, label)
    ahead = [[b - a for a, b in zip(x, y, strict=True)] for x, y in zip(groups["none"], groups["batch"], strict=True)]
    plots.difference(axes[1], GAINS, ahead)
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xticks(GAINS, [f"{gain:g}" for gain in GAINS])
        axis.minorticks_off()
    axes[0].set_ylim(-3, 104)
    plots.dress(axes[0], "Each at its own rate", "gain of the start", "test accuracy, %")
    plots.dress(axes[1], "Batch norm ahead", "gain of the start", "% points, paired")
    plots.legend(axes[0], "center right")
    description = (
        f"Left: test accuracy of a ReLU network of {DEPTH} layers against the factor on He's start, each at the rate "
        "chosen on validation images; medians over seeds, shades from the worst to the best; 0 is a training that "
        "diverged. Right: the paired difference, mean and 95 % interval."
    )
    return [plots.finish(figure, "initialization", "The start and batch norm", description)]


def _of(runs: Sequence[Run], seed: int) -> list[Run]:
    return [run for run in runs if run.params["seed"] == seed]


STUDY = Study(
    name="initialization",
    title="Less dependence on the start",
    claim="With batch norm a deep network trains from starts that are ten times too small or too large; without it "
    "only "
    "near the right one.",
    who="Ioffe & Szegedy 2015 (abstract: BN allows us to be less careful about initialization).",
    experiment=f"{DEPTH} ReLU layers of 64 units on real images, He's start times a gain from 0.1 to 10, with and "
    "without normkit.BatchNorm1d before each activation, plain SGD with batches of 64 at four rates from 0.01 to 10, "
    "of "
    "which validation images choose one for each gain and norm. The same draws of the weights for both.",
    parts=PARTS,
    paper="The paper claims it and shows no figure. Ours: the left panel.",
    doubt="The grid ends at gains of 0.1 and 10, and the range of 100 is all of it: with batch norm every gain "
    "trains, without it only gain 1 does. From gain 2 on the network without a norm diverges at the smallest rate "
    "that was tried. At gain 10 batch norm has rates of 1 and 10 to choose from, and one between may be better than "
    "either. The last layer's start is not scaled. Under BN a gain of 10 makes the effective rate 100 times smaller, "
    "so a fixed rate would look far worse than the tuned one.",
    advice="With batch norm keep the usual start and tune the rate: a start 10 times too large still costs "
    "accuracy. Without it, use He's or Glorot's start for the activation at hand.",
    papers=("Ioffe & Szegedy 2015, arXiv:1502.03167", "He et al. 2015, arXiv:1502.01852"),
    seconds=(0.12, 0.3),
    plan=plan,
    run=run,
    plot=plot,
)
