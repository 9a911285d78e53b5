"""Batch norm against norms without a batch as it shrinks, and the same batch norm with exact statistics at test time.

Every run takes the same number of steps; the rate is chosen for each norm and batch on validation images and falls to
zero, so that the running average has come to rest when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import nn

import normkit as nk

from . import data, nets, training
from .population import with_population_statistics
from .rules import more_than
from .study import Params, Plot, Preset, Result, Run, Study, seeds_of
from .tuned import errors, tuned

BATCHES = [2, 8, 32]
SMALL, LARGE = BATCHES[0], BATCHES[-1]
NORMS = ["batch", "group"]
MORE = ["renorm", "layer", "instance"]  # in the full preset
# In the full preset at one batch, to answer one question each: does batch norm err at batch 2 for its statistics, or
# for the noise of the gradient (batch 32 in slices of 2)? Would no statistics of the batch be better?
ALONE = {"ghost": LARGE, "frozen": SMALL}
RATES = {2: [0.0075, 0.03, 0.12], 8: [0.03, 0.12, 0.5], 32: [0.03, 0.12, 0.5, 2.0]}  # by batch, with momentum 0.9
KNOWN = 2000  # training images that the exact statistics are taken from, at most
LABELS = {"batch": "batch norm", "group": "group norm, 4 groups", "renorm": "batch renorm",
          "layer": "layer norm (1 group)", "instance": "instance norm",
          "ghost": f"ghost norm, slices of {SMALL}", "frozen": "frozen at the start's"}  # fmt: skip


Self = TypeVar("Self", bound="Frozen")


class Frozen(nk.BatchNorm2d):
    """Batch norm by the statistics that it was given."""

    def train(self: Self, mode: bool = True) -> Self:
        super().train(False)
        return self


MAKE: dict[str, Callable[[int], nn.Module]] = {
    "renorm": nk.BatchRenorm2d,
    "ghost": lambda channels: nk.GhostBatchNorm2d(channels, virtual_batch_size=SMALL),
    "frozen": Frozen,
}


def plan(preset: Preset) -> list[Params]:
    steps = 220 if preset.quick else 1500
    arms = [(norm, batch) for norm in (NORMS if preset.quick else NORMS + MORE) for batch in BATCHES]
    return [
        {"norm": norm, "batch": batch, "rate": rate, "steps": steps, "seed": seed, "data": preset.data}
        for seed in preset.seed_range()
        for norm, batch in (arms if preset.quick else [*arms, *ALONE.items()])
        for rate in RATES[batch]
    ]


def run(params: Params) -> Result:
    """error: on the test images; exact: the same with statistics of the training set; valid: what chooses the rate."""
    images = data.load(params["data"], params["seed"])
    model = nets.conv_net(images, params["norm"], params["seed"], make=MAKE.get(params["norm"]))
    if params["norm"] == "frozen":
        start = nets.conv_net(images, "batch", params["seed"])
        model.load_state_dict(with_population_statistics(start, images.train_x[:KNOWN]).state_dict())
    plan = training.Plan(params["batch"], params["steps"], params["rate"], decay=True)
    training.train(model, images, plan, params["seed"])
    return judged(model, images, params["norm"])


def judged(model: nn.Module, images: data.Images, norm: str) -> Result:
    """What `run` says of a trained model."""
    result = errors(model, images)
    if norm == "batch":
        exact = with_population_statistics(model, images.train_x[:KNOWN]).eval()
        result["exact"] = training.test(exact, images.test_x, images.test_y)[1]
    return result


def error(runs: Sequence[Run], norm: str, batch: int, key: str = "error") -> float:
    """Of one seed, at the rate chosen for this norm and batch, %."""
    return 100 * float(tuned(runs, norm=norm, batch=batch).result[key])


def _rise(runs: Sequence[Run], norm: str) -> float:
    return error(runs, norm, SMALL) - error(runs, norm, LARGE)


PARTS = (
    more_than(f"At batch {SMALL} BN errs more than GN", 1.0, "% points", "ten images in a thousand",
              lambda r: error(r, "batch", SMALL) - error(r, "group", SMALL)),
    more_than(f"From batch {LARGE} to {SMALL} BN loses more than GN does", 1.0, "% points", "ten images in a thousand",
              lambda r: _rise(r, "batch") - _rise(r, "group")),
    more_than(f"At batch {LARGE} GN errs more than BN", 0.0, "% points", "which to take, whatever the size",
              lambda r: error(r, "group", LARGE) - error(r, "batch", LARGE)),
    more_than(f"Exact test statistics help BN at batch {SMALL}", 0.0, "% points", "they cost a minute",
              lambda r: error(r, "batch", SMALL) - error(r, "batch", SMALL, "exact")),
)  # fmt: skip


def plot(runs: Sequence[Run]) -> list[Plot]:
    from . import plots

    figure, axes = plots.panels(2, height=4.6)
    seeds = [[run for run in runs if run.params["seed"] == seed] for seed in seeds_of(runs)]
    there = {run.params["norm"] for run in runs}
    for index, norm in enumerate(norm for norm in [*NORMS, *MORE] if norm in there):
        groups = [[error(of, norm, batch) for of in seeds] for batch in BATCHES]
        plots.median_line(axes[0], BATCHES, groups, index, LABELS[norm], shade=norm in NORMS)
    for marker, (norm, batch) in zip("x+", ((n, b) for n, b in ALONE.items() if n in there), strict=False):
        plots.lone(axes[0], batch, plots.median([error(of, norm, batch) for of in seeds]), marker, LABELS[norm])
    against = [[error(of, "batch", b) - error(of, "group", b) for of in seeds] for b in BATCHES]
    plots.difference(axes[1], BATCHES, against, 1, "minus group norm")
    plots.difference(axes[1], [1.1 * b for b in BATCHES],
                     [[error(of, "batch", b) - error(of, "batch", b, "exact") for of in seeds] for b in BATCHES],
                     2, "minus itself under exact statistics")  # fmt: skip
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
        axis.minorticks_off()
    plots.dress(axes[0], "Each at its own rate, equal steps", "images per batch", "test error, %")
    plots.dress(axes[1], "Batch norm's error ...", "images per batch", "% points, paired")
    for axis in axes:
        plots.legend(axis, "below", 1 if axis is axes[1] else 2)
    description = (
        "Left: test error in per cent against the training batch, each norm and batch at the rate chosen on validation "
        "images and all with equal steps; medians over seeds, shades from the best to the worst. Right: batch norm's "
        "error minus that of group norm, and minus its own under exact test statistics; mean and 95 % interval."
    )
    return [plots.finish(figure, "small_batch", "Test error as the batch shrinks", description)]


STUDY = Study(
    name="small_batch",
    title="Small batches",
    claim="Batch norm gets worse as the batch shrinks and group norm does not; at batch 2 group norm wins, at 32 "
    "batch norm; and exact statistics at test time give back some of what batch norm lost.",
    who="Wu & He 2018 (figure 1: group norm against batch norm from batch 32 to 2).",
    experiment="A network of three convolutions with normkit.BatchNorm2d or normkit.GroupNorm of four groups (in the "
    "full preset also batch renorm, layer and instance norm; at batch 32 ghost norm by slices of 2, at batch 2 a norm "
    "that keeps the exact statistics of the start), trained on real images with batches of 2, 8 and 32 for the "
    "same number of steps, SGD with momentum 0.9 at three or four rates for each batch, which fall to zero, from "
    f"{RATES[SMALL][0]} at {SMALL} images to {RATES[LARGE][-1]} at {LARGE}; validation images choose the rate of each "
    "norm and batch. Then the trained batch norm gets the exact mean and variance of up "
    f"to {KNOWN:,} training images. Synchronized batch norm on one process is batch norm and is left out.",
    parts=PARTS,
    paper="Wu & He 2018, figure 1: ResNet-50 on ImageNet, batch norm errs 23.6 % at 32 and 34.7 % at 2 images per GPU, "
    "group norm 24.1 % at both.",
    doubt="Equal steps, not equal images: a batch of 2 sees a sixteenth of the images. With equal images and one rate "
    "scaled by the batch, group norm looked far worse at 32 than it is.",
    advice="In a small network tune the rate at batch 2 before you change the norm, and make exact statistics "
    "before you test; best of all there was batch norm frozen at the start's exact statistics. At the paper's size "
    "take group norm under 8 images.",
    papers=("Wu & He 2018, arXiv:1803.08494", "Wu & Johnson 2021, arXiv:2105.07576"),
    seconds=(0.44, 2.3),
    plan=plan,
    run=run,
    plot=plot,
    changes=("Before, one rate was scaled by the batch and all saw the same images, so group norm took 16 times fewer "
             "steps at batch 32 than at 2; 'GN loses less than 1 point' passed at -9 points and is gone.",
             "Then every batch had the rates 0.03, 0.12 and 0.5: at batch 2 the smallest was chosen by group norm in "
             "20 of 20 seeds, by batch norm in 13, and at 32 the largest by batch norm in 14 (the word was undecided). "
             "Now each batch has rates of its own, around those that it chooses (at batch 2 a first such grid, from "
             "0.002 to 0.03, ended too low); parts and margins are the same."),
)  # fmt: skip
