"""A chain of factors y = w_m ... w_2 w_1 x, and what one gradient step does to it.

The objective J = -mean(target * y) is linear in y, so every departure of the step from its first-order prediction
-lr * |grad J|^2 comes from the product of the weights (Goodfellow, Bengio & Courville 2016, section 8.7.1). Between the
factors batch norm removes the scale that earlier factors put in, and the product terms with it. All in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

import normkit as nk

from .study import Params, Plot, Preset, Result, Run, Study
from .verdict import Verdict, bounded, combine, paired_ratio

DEPTHS = [2, 4, 8, 16, 32]
WEIGHTS = [0.6, 0.8, 1.0, 1.2, 1.4]
NORMS = ["none", "batch"]
RATE = 0.1
SAMPLES = 256
SEEDS = 20  # a chain takes milliseconds, so even the quick preset has these
LIMIT = 0.1  # with BN two factors remain, the last weight and the last gain: their product term is about RATE / 2


def plan(preset: Preset) -> list[Params]:
    return [{"seed": seed, "rate": RATE} for seed in preset.seed_range(SEEDS)]


def run(params: Params) -> Result:
    """The error of the prediction, as errors[norm][depth][weight], for one seed."""
    return {
        norm: [[step_error(depth, weight, norm, params) for weight in WEIGHTS] for depth in DEPTHS] for norm in NORMS
    }


def step_error(depth: int, weight: float, norm: str, params: Params) -> float:
    """|actual - predicted| / |predicted| for one step of gradient descent on one chain."""
    generator = torch.Generator().manual_seed(params["seed"])
    x = torch.randn(SAMPLES, 1, dtype=torch.float64, generator=generator)
    spread = 0.05 * torch.randn(depth, dtype=torch.float64, generator=generator)
    chain = _chain(weight * (1 + spread), norm == "batch")
    before = _objective(chain, x)
    gradients = torch.autograd.grad(before, list(chain.parameters()))
    predicted: float = -params["rate"] * sum(float((g * g).sum()) for g in gradients)
    with torch.no_grad():
        for parameter, gradient in zip(chain.parameters(), gradients, strict=True):
            parameter.sub_(gradient, alpha=params["rate"])
        actual = float(_objective(chain, x)) - float(before)
    return abs(actual - predicted) / abs(predicted)


def _chain(weights: Tensor, norm: bool) -> nn.Sequential:
    """weights: (m,). Factor, norm, factor, norm, ..., factor: norms stand between the factors only."""
    layers: list[nn.Module] = []
    for index, weight in enumerate(weights):
        if norm and index > 0:
            layers.append(nk.BatchNorm1d(1, dtype=torch.float64))
        factor = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        nn.init.constant_(factor.weight, float(weight))
        layers.append(factor)
    return nn.Sequential(*layers)


def _objective(chain: nn.Sequential, x: Tensor) -> Tensor:
    return -(x * chain(x)).mean()


def judge(runs: Sequence[Run]) -> Verdict:
    plain = [run.result["none"] for run in runs]  # one table a seed: [depth][weight]
    deepest, at_one = DEPTHS.index(32), WEIGHTS.index(1.0)
    worst = [error for run in runs for row in run.result["batch"] for error in row]
    return combine(
        [
            paired_ratio(
                "At depth 32 and weights near 1 the plain step misses its prediction by more than the prediction "
                "itself",
                [table[deepest][at_one] for table in plain],
                1.0,
            ),
            paired_ratio(
                "The plain error grows each time the depth doubles (weights near 1)",
                [_least_growth([row[at_one] for row in table]) for table in plain],
                1.2,
            ),
            paired_ratio(
                "The plain error grows with each larger weight (depth 16)",
                [_least_growth(table[DEPTHS.index(16)]) for table in plain],
                1.2,
            ),
            bounded("With batch norm the prediction holds at every depth and weight", worst, LIMIT),
        ]
    )


def _least_growth(values: Sequence[float]) -> float:
    """The smallest ratio of neighbours: above 1 means that the values rise everywhere."""
    return min(later / max(earlier, 1e-300) for earlier, later in pairwise(values))


def plot(runs: Sequence[Run]) -> list[Plot]:
    from . import plots

    figure, axes = plots.panels(2, share_y=True)
    titles = {"none": "Plain chain", "batch": "Batch norm between the factors"}
    for axis, norm in zip(axes, NORMS, strict=True):
        for index, weight in enumerate(WEIGHTS):
            medians = [plots.median([run.result[norm][d][index] for run in runs]) for d in range(len(DEPTHS))]
            plots.line(axis, DEPTHS, medians, index, f"w = {weight:g}")
        axis.axhline(1.0, **plots.REFERENCE)
        plots.dress(axis, titles[norm], "depth m", "error of the first-order prediction" if norm == "none" else "")
        axis.set_xscale("log", base=2)
        axis.set_xticks(DEPTHS, [str(depth) for depth in DEPTHS])
        axis.set_yscale("log")
        axis.set_ylim(1e-4, 1e6)
    plots.legend(axes[0], "upper left")
    description = (
        "Relative error of the change that a gradient step of 0.1 predicts, against the depth of the chain; medians "
        "over seeds, one line a weight. Dashed: an error as large as the prediction. Left without, right with batch "
        "norm between the factors."
    )
    return [plots.finish(figure, "linear_chain", "The step that a deep product takes", description)]


STUDY = Study(
    name="linear_chain",
    title="A gradient step in a deep product",
    claim="In a product of many factors a gradient step does not do what its gradient promises, the more so the deeper "
    "the chain and the larger its weights; with batch norm between the factors it does.",
    experiment="y = w_m ... w_1 x with x of 256 standard normal values, weights of about 0.6 to 1.4 and depth 2 to "
    "32, in float64, 20 seeds. One gradient step of rate 0.1 on J = -mean(x y). The first-order prediction is "
    "-0.1 |grad J|^2; the error is |actual - predicted| / |predicted|. Then the same with normkit.BatchNorm1d "
    "between the factors.",
    rule="Over seeds: the plain error exceeds 1 at depth 32 and weight 1, and grows by more than a factor of 1.2 from "
    "each depth to its double and from each weight to the next. With batch norm no error of any chain exceeds 0.1.",
    papers=(
        "Goodfellow, Bengio & Courville 2016, Deep Learning, section 8.7.1",
        "Ioffe & Szegedy 2015, arXiv:1502.03167",
    ),
    seconds=(0.2, 0.2),
    plan=plan,
    run=run,
    judge=judge,
    plot=plot,
)
