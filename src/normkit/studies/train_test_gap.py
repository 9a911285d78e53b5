"""The same weights under three sets of statistics: the test batch's, the running average's, the training set's own.

During training the running average follows weights that move on; exact statistics of the training set belong to the
weights as they are. When the test distribution shifts, both describe the wrong data, and only the test batch's own
statistics follow.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import data, nets, training
from .population import with_population_statistics
from .study import Params, Plot, Preset, Result, Run, Study
from .verdict import Verdict, combine, paired, paired_below

BATCH, RATE = 8, 0.05
SEEDS = 10  # a seed takes seconds, and its effects are small beside the spread of seeds
KNOWN = 2000  # training images for the exact statistics, at most
STATISTICS = ["running", "exact", "batch"]
SHIFTS = [0.0, 0.25, 0.5, 0.75, 1.0]
EARLY, SHIFTED = 0, SHIFTS.index(0.75)


def plan(preset: Preset) -> list[Params]:
    looks = [10, 30, 100, 300, 600] if preset.quick else [10, 30, 100, 300, 1000, 3000, 6000]
    return [
        {"looks": looks, "batch": BATCH, "rate": RATE, "seed": seed, "data": preset.data}
        for seed in preset.seed_range(SEEDS)
    ]


def run(params: Params) -> Result:
    """curve[statistics][look] and shifted[statistics][shift]: test errors; loss[statistics][look]: cross-entropies."""
    images = data.load(params["data"])
    torch.manual_seed(params["seed"])
    model = nets.conv_net(images, "batch")
    curve: dict[str, list[float]] = {name: [] for name in STATISTICS}
    losses: dict[str, list[float]] = {name: [] for name in STATISTICS}

    def look(step: int) -> None:
        if step in params["looks"]:
            for name, tested in _versions(model, images).items():
                loss, error = training.test(tested, images.test_x, images.test_y)
                curve[name].append(error)
                losses[name].append(loss)
            model.train()

    training.train(
        model, images, training.Plan(params["batch"], params["looks"][-1], params["rate"]), params["seed"], look
    )
    versions = _versions(model, images)
    shifted = {
        name: [training.test(tested, shift(images.test_x, size), images.test_y)[1] for size in SHIFTS]
        for name, tested in versions.items()
    }
    return {"curve": curve, "loss": losses, "shifted": shifted}


def shift(x: Tensor, size: float) -> Tensor:
    """Less contrast and more light: x (N, C, H, W) in units of the training set's deviation; size 0 is x itself."""
    return x * (1 - 0.6 * size) + 2.0 * size


def _versions(model: nn.Module, images: data.Images) -> dict[str, nn.Module]:
    """Copies of the model, one under each set of statistics; in training mode a test batch brings its own."""
    running = copy.deepcopy(model).eval()
    exact = with_population_statistics(model, images.train_x[:KNOWN]).eval()
    return {"running": running, "exact": exact, "batch": copy.deepcopy(model).train()}


def judge(runs: Sequence[Run]) -> Verdict:
    def points(key: str, name: str, index: int) -> list[float]:
        return [100 * run.result[key][name][index] for run in runs]

    def nats(name: str) -> list[float]:
        return [run.result["loss"][name][-1] for run in runs]

    early = _minus(points("curve", "running", EARLY), points("curve", "exact", EARLY))
    agree = [abs(d) for d in _minus(points("curve", "exact", -1), points("curve", "batch", -1))]
    fooled = _minus(points("shifted", "exact", SHIFTED), points("shifted", "batch", SHIFTED))
    step, size = runs[0].params["looks"][EARLY], SHIFTS[SHIFTED]
    return combine(
        [
            paired(f"After {step} steps the running average errs more than exact statistics", early, 0.0, "% points"),
            paired("At the end its test loss is still the larger", _minus(nats("running"), nats("exact")), 0.0, "nats"),
            paired_below(
                "Without a shift exact statistics are as good as the test batch's own", agree, 2.0, "% points apart"
            ),
            paired(
                f"Under a shift of {size} exact statistics err more than the test batch's own", fooled, 10.0, "% points"
            ),
        ]
    )


def _minus(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


LABELS = {
    "running": "running average",
    "exact": "exact, of the training set",
    "batch": f"of the test batch ({training.TEST_BATCH})",
}


def plot(runs: Sequence[Run]) -> list[Plot]:
    from . import plots

    figure, axes = plots.panels(2, height=3.7)
    looks = runs[0].params["looks"]
    for index, (name, label) in enumerate(LABELS.items()):
        for axis, x, key in ((axes[0], looks, "curve"), (axes[1], SHIFTS, "shifted")):
            groups = [[100 * run.result[key][name][i] for run in runs] for i in range(len(x))]
            band = [min(group) for group in groups], [max(group) for group in groups]
            plots.line(axis, x, [plots.median(group) for group in groups], index, label, band)
    axes[0].set_xscale("log")
    axes[0].set_xticks(looks, [str(look) for look in looks])
    axes[0].minorticks_off()
    plots.dress(axes[0], "Test error during training, %", "step", "")
    plots.dress(axes[1], "Test error under a shift, %", "size of the shift: less contrast, more light", "")
    for axis in axes:
        axis.set_ylim(0, 100)
    plots.legend(axes[0], "upper right")
    description = (
        "Test error in per cent of the same weights under three sets of statistics; medians over seeds, shades from "
        "the best to the worst seed. Left: during training, against the step. Right: after training, against the "
        "size of a shift of the test images."
    )
    return [plots.finish(figure, "train_test_gap", "The same weights under three sets of statistics", description)]


STUDY = Study(
    name="train_test_gap",
    title="Between training and testing",
    claim="The running average is the weak point of batch norm at test time: it lags behind the weights, where exact "
    "statistics do not; and when the test distribution shifts neither fits, while the test batch's own "
    "statistics do.",
    experiment=f"A network of three convolutions with normkit.BatchNorm2d, trained on real images with batches of "
    f"{BATCH} at a constant rate of {RATE}, momentum 0.9. At several steps the same weights are tested under the "
    f"running average, under the exact mean and variance of up to {KNOWN:,} training images, and under the "
    f"statistics of test batches of {training.TEST_BATCH}; at the end also on test images with less contrast and "
    f"more light.",
    rule="Over seeds: after the first look the running average errs more than exact statistics; "
    "at the end its loss is larger; exact statistics and those of the test batch differ by less than 2 points "
    "without a shift; and under a shift of 0.75 exact statistics err over 10 points more than the test batch's "
    "own.",
    papers=("Wu & Johnson 2021, arXiv:2105.07576", "Schneider et al. 2020, arXiv:2006.16971"),
    seconds=(2.6, 11.0),
    plan=plan,
    run=run,
    judge=judge,
    plot=plot,
)
