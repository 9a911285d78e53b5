"""Batch norm against group norm as the batch shrinks, and the same batch norm with exact statistics at test time.

Every run sees the same number of images; the rate grows with the batch (linear scaling, Goyal et al. 2017) and falls to
zero, so that the running average has come to rest when it is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import data, nets, training
from .population import with_population_statistics
from .study import Params, Plot, Preset, Result, Run, Study, by_seed, seeds_of
from .verdict import Verdict, combine, paired, paired_below

BATCHES = [2, 4, 8, 16, 32, 64]
SMALL, LARGE = 2, 32
NORMS = ["batch", "group"]
RATE = 0.2  # at a batch of 32, with momentum 0.9
KNOWN = 2000  # training images that the exact statistics are taken from, at most


def plan(preset: Preset) -> list[Params]:
    images = 6000 if preset.quick else 60_000
    return [
        {"norm": norm, "batch": batch, "images": images, "rate": RATE, "seed": seed, "data": preset.data}
        for norm in NORMS
        for batch in BATCHES
        for seed in preset.seed_range()
    ]


def run(params: Params) -> Result:
    """Test error with the running statistics and, for batch norm, with those of the training set."""
    images = data.load(params["data"])
    torch.manual_seed(params["seed"])
    model = nets.conv_net(images, params["norm"])
    rate = params["rate"] * params["batch"] / LARGE
    plan = training.Plan(params["batch"], params["images"] // params["batch"], rate, decay=True)
    training.train(model, images, plan, params["seed"])
    result = {"error": training.test(model.eval(), images.test_x, images.test_y)[1]}
    if params["norm"] == "batch":
        exact = with_population_statistics(model, images.train_x[:KNOWN]).eval()
        result["exact"] = training.test(exact, images.test_x, images.test_y)[1]
    return result


def judge(runs: Sequence[Run]) -> Verdict:
    def errors(norm: str, batch: int, key: str = "error") -> list[float]:
        found = by_seed(runs, norm=norm, batch=batch)
        return [100 * found[seed].result[key] for seed in seeds_of(runs)]

    bn, gn = ({size: errors(norm, size) for size in (SMALL, LARGE)} for norm in NORMS)
    exact = errors("batch", SMALL, "exact")
    rise = [
        (b2 - b32) - (g2 - g32) for b2, b32, g2, g32 in zip(bn[SMALL], bn[LARGE], gn[SMALL], gn[LARGE], strict=True)
    ]
    return combine(
        [
            paired(f"At batch {SMALL} BN errs more than GN", _minus(bn[SMALL], gn[SMALL]), 0.0, "% points"),
            paired(f"From batch {LARGE} to {SMALL} BN loses more than GN does", rise, 1.0, "% points"),
            paired_below(
                f"From batch {LARGE} to {SMALL} GN loses less than 1 point",
                _minus(gn[SMALL], gn[LARGE]),
                1.0,
                "% points",
            ),
            paired(f"At batch {LARGE} BN errs less than GN", _minus(gn[LARGE], bn[LARGE]), 0.0, "% points"),
            paired(f"Exact test statistics help BN at batch {SMALL}", _minus(bn[SMALL], exact), 0.0, "% points"),
        ]
    )


def _minus(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def plot(runs: Sequence[Run]) -> list[Plot]:
    from . import plots

    figure, (axis,) = plots.panels(1, height=3.9)
    series = (
        ("batch", "error", "batch norm"),
        ("group", "error", "group norm"),
        ("batch", "exact", "the same batch norm, exact statistics at test time"),
    )
    for index, (norm, key, label) in enumerate(series):
        groups = [[100 * r.result[key] for r in by_seed(runs, norm=norm, batch=b).values()] for b in BATCHES]
        band = [min(group) for group in groups], [max(group) for group in groups]
        plots.line(axis, BATCHES, [plots.median(group) for group in groups], index, label, band)
    axis.set_xscale("log", base=2)
    axis.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
    plots.decades(axis, [100 * run.result["error"] for run in runs])
    plots.dress(axis, "Test error, %", "images a batch", "")
    plots.legend(axis, "upper left")
    description = (
        "Test error in per cent, on a logarithmic scale, against the training batch; medians over seeds, shades from "
        "the best to the worst seed. All see the same number of images, so larger batches take fewer and larger "
        "steps."
    )
    return [plots.finish(figure, "small_batch", "Test error as the batch shrinks", description)]


STUDY = Study(
    name="small_batch",
    title="Small batches",
    claim="Batch norm gets worse as the batch shrinks and group norm does not; at batch 2 group norm wins, at 32 "
    "batch norm; and exact statistics at test time give back some of what batch norm lost.",
    experiment="A network of three convolutions with normkit.BatchNorm2d or normkit.GroupNorm of four groups, "
    "trained on the same number of real images with batches of 2 to 64, SGD with momentum 0.9, rate 0.2 at batch "
    "32 scaled with the batch and falling to zero. Then the trained batch norm gets the exact mean and variance "
    "of up to 2,000 training images.",
    rule="Over seeds, in points of test error: at batch 2 BN is worse than GN; from batch 32 to 2 BN loses over 1 "
    "point more than GN, and GN loses less than 1 point; at batch 32 BN is better than GN; at batch 2 exact "
    "statistics are better than the running average.",
    papers=("Wu & He 2018, arXiv:1803.08494", "Wu & Johnson 2021, arXiv:2105.07576"),
    seconds=(1.1, 11.0),
    plan=plan,
    run=run,
    judge=judge,
    plot=plot,
)
