"""How many groups, and whether the channels of a group belong together: group norm from layer norm to instance norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import normkit as nk

from . import data, nets, training
from .rules import more_than
from .study import Params, Plot, Preset, Result, Run, Study, seeds_of
from .tuned import errors, tuned

EACH = 0  # stands for one channel a group: instance norm, whatever the width
GROUPS = [1, 2, 4, 8, EACH]
SOME = 4  # where the channels are shuffled
ORDERS = ["kept", "shuffled", "reshuffled"]
RATES = [0.03, 0.12, 0.5]  # with momentum 0.9
BATCH = 8
LABELS = {"kept": "as they are", "shuffled": "shuffled once", "reshuffled": "shuffled at every step"}


class ShuffledGroupNorm(nn.Module):
    """GroupNorm of channels in a random order: y[order] = group_norm(x[order]), with gamma and beta of their channels.

    again: a new order at every step of training; the first one in evaluation. Shape: (N, C, H, W) -> the same.
    """

    order: Tensor

    def __init__(self, groups: int, channels: int, seed: int, again: bool) -> None:
        super().__init__()
        self.groups, self.again = groups, again
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.generator = torch.Generator().manual_seed(seed)
        self.register_buffer("order", torch.randperm(channels, generator=self.generator))

    def forward(self, x: Tensor) -> Tensor:
        fresh = self.again and self.training
        order = torch.randperm(x.shape[1], generator=self.generator) if fresh else self.order
        y = nk.functional.group_norm(x[:, order], self.groups, self.weight[order], self.bias[order])
        return y[:, torch.argsort(order)]


def plan(preset: Preset) -> list[Params]:
    steps = 180 if preset.quick else 1000
    arms = [(groups, "kept") for groups in GROUPS] + [(SOME, order) for order in ORDERS[1:]]
    return [
        {"groups": groups, "order": order, "rate": rate, "steps": steps, "seed": seed, "data": preset.data}
        for seed in preset.seed_range()
        for groups, order in arms
        for rate in RATES
    ]


def run(params: Params) -> Result:
    """error: on the test images; valid: what chooses the rate; alike: `alikeness` before the second norm."""
    images = data.load(params["data"], params["seed"])
    groups, order = params["groups"], params["order"]

    def make(channels: int) -> nn.Module:
        count = groups if groups != EACH else channels
        if order == "kept":
            return nk.GroupNorm(count, channels)
        return ShuffledGroupNorm(count, channels, params["seed"] + channels, again=order == "reshuffled")

    model = nets.conv_net(images, "group", params["seed"], make=make)
    training.train(model, images, training.Plan(BATCH, params["steps"], params["rate"], decay=True), params["seed"])
    found = errors(model, images)
    with torch.no_grad():
        maps = model[:4](images.valid_x)
    return found | {"alike": alikeness(maps, SOME)}


def alikeness(maps: Tensor, groups: int) -> float:
    """Mean |correlation| of two channels of a group minus that of two channels of different groups.

    maps (N, C, H, W): correlated over images and places. Constant channels correlate with nothing.
    """
    channels = maps.shape[1]
    rows = maps.transpose(0, 1).flatten(1).double()
    rows = rows - rows.mean(1, keepdim=True)
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    correlation = (rows @ rows.T).abs()
    group = torch.arange(channels) // (channels // groups)
    same = group[:, None] == group[None, :]
    other = ~torch.eye(channels, dtype=torch.bool)
    return float(correlation[same & other].mean() - correlation[~same].mean())


def error(runs: Sequence[Run], groups: int, order: str = "kept", key: str = "error") -> float:
    """Of one seed, at the rate chosen for this arm, %."""
    return 100 * float(tuned(runs, groups=groups, order=order).result[key])


PARTS = (
    more_than(f"{SOME} groups err less than one group of all channels (layer norm)", 0.5, "% points",
              "five images in a thousand", lambda r: error(r, 1) - error(r, SOME)),
    more_than(f"{SOME} groups err less than a group for each channel (instance norm)", 0.5, "% points",
              "five images in a thousand", lambda r: error(r, EACH) - error(r, SOME)),
    more_than("Channels shuffled once before they are grouped err more", 0.5, "% points",
              "then it matters which channels share a mean", lambda r: error(r, SOME, "shuffled") - error(r, SOME)),
    more_than("Channels that change their group at every step err more", 0.5, "% points",
              "then a network fits its groups", lambda r: error(r, SOME, "reshuffled") - error(r, SOME)),
    more_than("After training the channels of a group are more alike than others", 0.02, "of |correlation|",
              "less is not seen in 80 pairs", lambda r: error(r, SOME, key="alike") / 100),
)  # fmt: skip


def plot(runs: Sequence[Run]) -> list[Plot]:
    from . import plots

    figure, axes = plots.panels(2, height=3.9)
    seeds = [[run for run in runs if run.params["seed"] == seed] for seed in seeds_of(runs)]
    places = list(range(len(GROUPS)))
    errors = [[error(of, groups) for of in seeds] for groups in GROUPS]
    plots.median_line(axes[0], places, errors, 0, LABELS["kept"])
    for index, order in enumerate(ORDERS[1:], start=1):
        shuffled = [error(of, SOME, order) for of in seeds]
        plots.dots(axes[0], [GROUPS.index(SOME) + 0.12 * index], [plots.median(shuffled)], index, LABELS[order])
    apart = [[error(of, groups) - error(of, SOME) for of in seeds] for groups in GROUPS]
    plots.difference(axes[1], places, apart, 0, LABELS["kept"])
    for index, order in enumerate(ORDERS[1:], start=1):
        worse = [error(of, SOME, order) - error(of, SOME) for of in seeds]
        plots.difference(axes[1], [GROUPS.index(SOME) + 0.12 * index], [worse], index, LABELS[order])
    for axis in axes:
        axis.set_xticks(places, ["1 (layer)", *map(str, GROUPS[1:-1]), "each (instance)"])
        axis.minorticks_off()
        plots.legend(axis)
    plots.dress(axes[0], "Each at its own rate", "groups", "test error, %")
    plots.dress(axes[1], "Against four groups", "groups", "% points, paired")
    description = (
        "Left: test error in per cent against the number of groups, each at the rate chosen on validation images; "
        "medians over seeds, the shade from the best to the worst; dots: four groups of channels shuffled once, and "
        "anew at every step. Right: the same minus four groups as they are; mean and 95 % interval."
    )
    return [plots.finish(figure, "group_count", "Test error by the number of groups", description)]


STUDY = Study(
    name="group_count",
    title="How many groups",
    claim="The channels of a group belong together, as shapes, edges and textures do: some groups do better than one "
    "or than one for each channel, and shuffling the channels before they are grouped does harm.",
    who="Wu & He 2018, section 3: channels are not entirely independent, as in SIFT and HOG, whose parts are "
    "normalized group by group; tutorials repeat it as the reason why group norm works.",
    experiment="A network of three convolutions (16, 32 and 32 channels) with normkit.GroupNorm of 1, 2, 4, 8 groups "
    f"and of one channel per group, trained on real images with batches of {BATCH}, SGD with momentum 0.9 at rates of "
    f"{RATES[0]} to {RATES[-1]} that fall to zero; validation images choose the rate of each. At {SOME} groups the "
    "channels are also put in a random order before they are grouped: one order for good, and a new one at every step. "
    "Likeness is the mean size of the correlation of two channels over validation images and places, before the second "
    "norm.",
    parts=PARTS,
    paper="Wu & He 2018, table 3: ResNet-50 on ImageNet errs 24.1 % with 32 groups, 25.3 % with one, 28.4 % with "
    "one channel per group. Ours runs the other way: a group for each channel errs least. They have no control that "
    "shuffles.",
    doubt="Nothing tells a new network which channels are neighbours: an order for good only renames them, so that "
    "control can find nothing but chance; the one at every step can. Networks whose groups are built in (grouped "
    "convolutions, HOG) are another case.",
    advice="On photographs take the paper's 32 groups; on digits more groups erred less here. Do not arrange channels "
    "for the norm's sake.",
    papers=("Wu & He 2018, arXiv:1803.08494", "Dalal & Triggs 2005 (HOG)"),
    seconds=(0.4, 1.5),
    plan=plan,
    run=run,
    plot=plot,
)
