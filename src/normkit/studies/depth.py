"""How deep a network without skip connections may be, with and without batch norm."""

from __future__ import annotations

from collections.abc import Sequence

from . import data, nets
from .rules import less_than, more_than
from .study import Params, Plot, Preset, Result, Run, Study
from .tuned import accuracy, fitted

DEPTHS = [2, 5, 10, 20, 40]
RATES = [0.001, 0.01, 0.1, 1.0, 3.2]
NORMS: tuple[nets.Norm, ...] = ("none", "batch")


def plan(preset: Preset) -> list[Params]:
    steps = 60 if preset.quick else 240
    return [
        {"norm": norm, "depth": depth, "rate": rate, "steps": steps, "seed": seed, "data": preset.data}
        for seed in preset.seed_range()
        for norm in NORMS
        for depth in DEPTHS
        for rate in RATES
    ]


def run(params: Params) -> Result:
    """As tuned.fitted."""
    images = data.load(params["data"], params["seed"])
    return fitted(nets.deep_mlp(images, params["norm"], "relu", params["depth"], params["seed"]), images, params)


def ahead(runs: Sequence[Run], depth: int) -> float:
    """Batch norm minus none, % points."""
    return accuracy(runs, norm="batch", depth=depth) - accuracy(runs, norm="none", depth=depth)


PARTS = (
    more_than("At depth 20 batch norm is ahead", 10.0, "% points", "a difference between training and hardly training",
              lambda r: ahead(r, 20)),
    less_than("From depth 2 to 20 a network with batch norm loses", 10.0, "% points", "it still trains",
              lambda r: accuracy(r, norm="batch", depth=2) - accuracy(r, norm="batch", depth=20)),
    more_than("At depth 40 the one with batch norm trains", 50.0, "% right", "half right",
              lambda r: accuracy(r, norm="batch", depth=40)),
)  # fmt: skip


def plot(runs: Sequence[Run]) -> list[Plot]:
    from .comparison import compared

    labels: dict[nets.Norm, str] = {"none": "no norm", "batch": "batch norm"}
    arms = {label: lambda r, d, norm=norm: accuracy(r, norm=norm, depth=d) for norm, label in labels.items()}
    description = (
        "Left: test accuracy of ReLU networks against the number of layers, each at the rate chosen on validation "
        "images; medians over seeds, shades from the worst to the best. Right: batch norm minus none, mean and 95 % "
        "interval."
    )
    titles = ("Depth without skip connections", "layers", "Batch norm ahead")
    return [compared("depth", runs, DEPTHS, arms, {"": ahead}, titles, description, "log")]


STUDY = Study(
    name="depth",
    title="How deep without skip connections",
    claim="Deep networks that do not train without normalization do train with batch norm, at any depth.",
    who="Tutorials that hold that batch norm solves vanishing and exploding gradients; Yang et al. 2019 contradict for "
    "great depths.",
    experiment="Fully connected ReLU networks of 2 to 40 layers of 64 units on real images, He's start, with and "
    "without normkit.BatchNorm1d before each activation, plain SGD with batches of 64 at five rates, of which "
    "validation images choose one for each. The same draws of the weights for both.",
    parts=PARTS,
    paper="Yang et al. 2019 derive that the gradient of a wide ReLU network with batch norm grows by about 1.21 "
    "per layer at the start, some 2,000 times over 40 layers, and find networks of 50 layers untrainable. Ours: the "
    "left panel; at 40 layers neither network trains.",
    doubt="Skip connections, or a longer training with a warm-up of the rate, move the limit. More steps may help the "
    "deepest networks.",
    advice="To go deeper than twenty layers take skip connections with the norm, not the norm alone.",
    papers=("Yang et al. 2019, arXiv:1902.08129", "He et al. 2016, arXiv:1512.03385"),
    seconds=(0.16, 0.6),
    plan=plan,
    run=run,
    plot=plot,
    changes=("Before, the rates were 0.01, 0.1 and 1: networks of 40 layers without a norm took the smallest in 20 of "
             "20 seeds, those of 2 with batch norm the largest in 19 (the word was not supported). Parts and margins "
             "are the same.",),
)  # fmt: skip
