"""Corrupted test images: batch norm with its training statistics, adapted to the test batch, and group norm.

Each corruption is reported by itself. Adaptation is `normkit.adapt`: test batches of two sizes, the training statistics
as a prior of N samples; the prior is chosen on validation images under the other corruptions, as who does not know what
will come must.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import normkit as nk

from . import data, nets, training
from .corruptions import CORRUPTIONS, corrupted
from .rules import less_than, more_than
from .study import Params, Plot, Preset, Result, Run, Study

SEVERITIES = [1, 3, 5]
TESTED = 240  # images, of the test and of the validation part, at most
BATCH, RATE = 32, 0.1
LARGE, SMALL = 120, 8  # images per test batch
PRIORS = [0, 4, 16, 64]
USUAL = PRIORS.index(16)
NAMES = list(CORRUPTIONS)


def plan(preset: Preset) -> list[Params]:
    steps = 200 if preset.quick else 1500
    return [{"steps": steps, "seed": seed, "data": preset.data} for seed in preset.seed_range()]


def run(params: Params) -> Result:
    """Shares of wrong answers: source, large, group [corruption][severity]; small, chosen [..][..][prior].

    small: in batches of 8 of the test images; chosen: of the validation images. clean: source, large and group without
    a corruption; sorted: source and each prior on the clean test images in the order of their classes.
    """
    images = data.load(params["data"], params["seed"])
    batch_norm, group_norm = (_trained(images, norm, params) for norm in ("batch", "group"))
    x, y = images.test_x[:TESTED], images.test_y[:TESTED]
    order = y.argsort(stable=True)

    def per_prior(x: Tensor, y: Tensor) -> list[float]:
        return [_error(batch_norm, x, y, SMALL, prior) for prior in PRIORS]

    def table(of: object, source: Tensor = x) -> list[list[object]]:
        return [[of(corrupted(source, n, s, params["seed"])) for s in SEVERITIES] for n in NAMES]  # type: ignore[operator]

    return {
        "source": table(lambda x: _error(batch_norm, x, y, LARGE, math.inf)),
        "large": table(lambda x: _error(batch_norm, x, y, LARGE, PRIORS[USUAL])),
        "group": table(lambda x: _error(group_norm, x, y, LARGE, math.inf)),
        "small": table(lambda x: per_prior(x, y)),
        "chosen": table(lambda x: per_prior(x, images.valid_y[:TESTED]), images.valid_x[:TESTED]),
        "clean": [_error(batch_norm, x, y, LARGE, math.inf), _error(batch_norm, x, y, LARGE, PRIORS[USUAL]),
                  _error(group_norm, x, y, LARGE, math.inf)],
        "sorted": [_error(batch_norm, x[order], y[order], SMALL, math.inf), *per_prior(x[order], y[order])],
    }  # fmt: skip


def _trained(images: data.Images, norm: nets.Norm, params: Params) -> nn.Module:
    """Trained to rest; batch norm with exact statistics, so that only the shift is left to blame."""
    model = nets.conv_net(images, norm, params["seed"])
    training.train(model, images, training.Plan(BATCH, params["steps"], RATE, decay=True), params["seed"])
    if norm == "batch":
        nk.recalibrate(model, images.train_x[:2000].split(500), distributed=False, progress=False)
    return model.eval()


@torch.no_grad()
def _error(model: nn.Module, x: Tensor, y: Tensor, batch: int, prior: float) -> float:
    wrong = 0
    with nk.adapt(model, prior=prior):
        for part_x, part_y in zip(x.split(batch), y.split(batch), strict=True):
            wrong += int((model(part_x).argmax(1) != part_y).sum())
    return wrong / len(y)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def points(runs: Sequence[Run], key: str, name: str | None = None) -> float:
    """Error in %, mean over severities, of one corruption or over all of them."""
    rows = runs[0].result[key]
    return 100 * _mean([_mean(rows[i]) for i in range(len(NAMES)) if name in (None, NAMES[i])])


def small(runs: Sequence[Run], prior: int | None, name: str | None = None, key: str = "small") -> float:
    """The same in batches of 8 under the prior of this index; None: under the one chosen on the other corruptions."""
    found = []
    for i, corruption in enumerate(NAMES):
        if name in (None, corruption):
            index = _choice(runs, i) if prior is None else prior
            found.append(_mean([row[index] for row in runs[0].result[key][i]]))
    return 100 * _mean(found)


def _choice(runs: Sequence[Run], left_out: int) -> int:
    """The prior that errs least on validation images under all corruptions but one."""
    rows = [row for i, rows in enumerate(runs[0].result["chosen"]) if i != left_out for row in rows]
    return min(range(len(PRIORS)), key=lambda prior: _mean([row[prior] for row in rows]))


PARTS = (
    more_than(f"Under corruptions the source errs more than adapted in batches of {LARGE}", 5.0, "% points",
              "a shift that costs less need not be repaired", lambda r: points(r, "source") - points(r, "large")),
    more_than("In batches of 8 no prior errs more than a prior of 16", 0.0, "% points",
              "the claim that small batches need the prior, whatever it saves",
              lambda r: small(r, 0) - small(r, USUAL)),
    more_than("With the chosen prior batches of 8 still beat the source", 2.0, "% points", "worth a call",
              lambda r: points(r, "source") - small(r, None)),
    less_than(f"Without a corruption adapting in batches of {LARGE} costs", 2.0, "% points", "a price one would pay",
              lambda r: 100 * (r[0].result["clean"][1] - r[0].result["clean"][0])),
    more_than("On clean images in the order of their classes batches of 8 alone err more than the source", 10.0,
              "% points", "a warning must be worth it",
              lambda r: 100 * (r[0].result["sorted"][1] - r[0].result["sorted"][0])),
    more_than("Group norm, which has no statistics to be wrong, beats the source", 2.0, "% points",
              "worth a retraining", lambda r: points(r, "source") - points(r, "group")),
)  # fmt: skip


def plot(runs: Sequence[Run]) -> list[Plot]:
    from . import plots

    figure, axes = plots.panels(2, height=4.0)
    versions = {
        "training statistics": lambda r, n: points(r, "source", n),
        f"adapted, prior 16, batches of {LARGE}": lambda r, n: points(r, "large", n),
        "chosen prior, batches of 8": lambda r, n: small(r, None, n),
        "no prior, batches of 8": lambda r, n: small(r, 0, n),
        "group norm": lambda r, n: points(r, "group", n),
    }
    places = list(range(len(NAMES)))
    for index, (label, of) in enumerate(versions.items()):
        middle = [plots.median([of([run], name) for run in runs]) for name in NAMES]
        plots.dots(axes[0], [p + 0.13 * (index - 2) for p in places], middle, index, label)
    plots.difference(axes[1], places, [[small([r], 0, n) - small([r], USUAL, n) for r in runs] for n in NAMES])
    for axis in axes:
        axis.set_xticks(places, NAMES)
    axes[0].set_ylim(0, 100)
    plots.dress(axes[0], "Under each corruption", "", "test error, %")
    plots.dress(axes[1], "No prior minus prior 16, batches of 8", "", "% points, paired")
    plots.legend(axes[0], "below")
    description = (
        "Left: test error in per cent under each corruption, mean over three severities, medians over seeds: batch "
        "norm "
        "under its training statistics, adapted in large and in small batches, and group norm. Right: what leaving the "
        "prior out costs in batches of 8 (above 0) or gains (below), mean and 95 % interval."
    )
    return [plots.finish(figure, "distribution_shift", "Test error under corruptions", description)]


STUDY = Study(
    name="distribution_shift",
    title="When the test images differ",
    claim="Under a shift of the test images batch norm's training statistics are wrong; statistics of the test "
    "batch, mixed with them, repair much of it; small batches need the training statistics as a prior; group norm is "
    "the other way out.",
    who="Schneider et al. 2020 (adaptation with a prior), Li et al. 2017; that the test set depends on the training "
    "set "
    "is an objection to batch norm in many tutorials.",
    experiment="The same network of three convolutions, once with normkit.BatchNorm2d and exact training statistics, "
    "once with normkit.GroupNorm, trained on real images; tested under five corruptions at three severities: under "
    "its training statistics (the source, in the words of the parts), "
    f"and with normkit.adapt in batches of {LARGE} and {SMALL} with a prior of 0 to 64 samples. The prior for each "
    "corruption is chosen on validation images under the other four.",
    parts=PARTS,
    paper="Schneider et al. 2020: on ImageNet-C adaptation lowers the mean corruption error of a ResNet-50 from "
    "76.7 to 62.2 %, and a prior lets small batches gain too. Ours agrees on large batches. On small ones it does "
    "not: a prior of 16 errs more under four of the corruptions, most under brightness, and as much under the fifth, "
    "pixelate (right panel).",
    doubt="Most of that difference is brightness, where the training statistics are worst, so any weight on them "
    "costs. Three of the five corruptions are near to what a batch's mean and deviation undo; real shifts are less "
    "kind. The stream is balanced but for the sorted one; there a larger prior errs less, and none less than the "
    "source.",
    advice="With test batches of 100 and more of mixed classes, adapt. With batches of 8 begin with a prior of 0 "
    "or 4, which every seed chose here, and choose it on data like that which will come; never adapt to a "
    "stream that comes sorted.",
    papers=("Schneider et al. 2020, arXiv:2006.16971", "Li et al. 2017, arXiv:1603.04779"),
    seconds=(6.0, 14.0),
    plan=plan,
    run=run,
    plot=plot,
    changes=("Before, one mean over all corruptions was judged and the prior was fixed at 16. The part that small "
             "batches need it stands as it was.",),
)  # fmt: skip
