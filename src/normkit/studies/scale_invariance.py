"""Batch norm does not see the scale of the weights before it: BN((a w) u) = BN(w u).

Hence d/du is the same for a w and w, d/d(a w) = (1/a) d/dw, and <w, dL/dw> = 0 (Ioffe & Szegedy 2015, section 3.3):
larger weights move less, and plain gradient descent can only lengthen them, |w|^2 growing by lr^2 |dL/dw|^2 a step.
The identities are tested in float64 with eps = 1e-12 (eps breaks them by eps / var); the growth on real data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import normkit as nk

from . import data, nets, training
from .study import Params, Plot, Preset, Result, Run, Study
from .verdict import Verdict, bounded, combine, paired_ratio

SCALES = [0.01, 0.1, 0.5, 1.0, 2.0, 10.0, 100.0]
EPS = 1e-12
SEEDS = 10  # a seed takes a fraction of a second
RATE = 0.1
TRAINING_RATE = 1.0  # batch norm trains at such a rate, and the growth is plain to see
LIMIT = 1e-6  # eps / var is 1e-8 for the smallest scale (var = a^2), and its effect on a gradient a few times that
GROWTH_LIMIT = 1e-3  # float32 training: the orthogonality that gives the sum holds to a few times eps / var


def plan(preset: Preset) -> list[Params]:
    steps = 150 if preset.quick else 1000
    return [{"seed": seed, "rate": RATE, "steps": steps, "data": preset.data} for seed in preset.seed_range(SEEDS)]


def run(params: Params) -> Result:
    """Scales against the output, the two gradients and the turn of a step; then |w| over a training."""
    torch.manual_seed(params["seed"])
    u = torch.randn(64, 20, dtype=torch.float64)
    w = torch.randn(8, 20, dtype=torch.float64) / math.sqrt(20)
    target = torch.randn(64, 8, dtype=torch.float64)
    base = _pass(u, w, target)
    rows = []
    for scale in SCALES:
        y, du, dw = _pass(u, scale * w, target)
        rows.append(
            {
                "scale": scale,
                "output": _distance(y, base[0]),
                "du": _distance(du, base[1]),
                "dw": _distance(scale * dw, base[2]),
                "dw_size": float(dw.norm()),
                "radial": float((scale * w * dw).sum().abs() / ((scale * w).norm() * dw.norm())),
                "turn": _turn(scale * w, scale * w - params["rate"] * dw),
            }
        )
    return {"scales": rows, "slope": _slope(rows), **_growth(params)}


def _pass(u: Tensor, w: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """u: (N, D), w: (C, D). The output of BN(w u) and the gradients of a cubic loss by u and w."""
    u, w = u.detach().requires_grad_(), w.detach().requires_grad_()
    y = nk.BatchNorm1d(len(w), eps=EPS, affine=False, dtype=torch.float64)(u @ w.T)
    du, dw = torch.autograd.grad(((y - target).abs() ** 3).mean(), (u, w))
    return y.detach(), du, dw


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def _turn(before: Tensor, after: Tensor) -> float:
    """The angle in degrees between two weights, by the tangent: an arc cosine is blind below 1e-6."""
    radial = (before * after).sum() / (before * before).sum() * before
    return math.degrees(math.atan2(float((after - radial).norm()), float(radial.norm())))


def _slope(rows: Sequence[Result]) -> float:
    """d log|dL/dw| / d log a between the smallest and the largest scale; the claim says -1."""
    first, last = rows[0], rows[-1]
    return math.log(last["dw_size"] / first["dw_size"]) / math.log(last["scale"] / first["scale"])


def _growth(params: Params) -> Result:
    """|w|^2 of a convolution before batch norm over training by plain SGD, beside |w0|^2 + sum lr^2 |dw|^2."""
    images = data.load(params["data"])
    torch.manual_seed(params["seed"])
    model = nets.conv_net(images, "batch")
    weight = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d)).weight
    start = float(weight.detach().square().sum())
    measured, predicted = [start], [start]

    def note(_step: int) -> None:
        assert weight.grad is not None
        measured.append(float(weight.detach().square().sum()))
        predicted.append(predicted[-1] + TRAINING_RATE**2 * float(weight.grad.square().sum()))

    plan = training.Plan(batch=32, steps=params["steps"], rate=TRAINING_RATE, momentum=0.0)
    training.train(model, images, plan, params["seed"], note)
    every = max(1, params["steps"] // 50)
    return {"measured": measured[::every], "predicted": predicted[::every], "every": every}


def judge(runs: Sequence[Run]) -> Verdict:
    def of(key: str) -> list[float]:
        return [row[key] for run in runs for row in run.result["scales"]]

    growth = [run.result["measured"][-1] / run.result["predicted"][-1] - 1 for run in runs]
    longer = [run.result["measured"][-1] / run.result["measured"][0] for run in runs]
    turns = [run.result["scales"][0]["turn"] / run.result["scales"][-1]["turn"] for run in runs]
    return combine(
        [
            bounded("The output does not see the scale", of("output"), LIMIT),
            bounded("The gradient by the input does not see it", of("du"), LIMIT),
            bounded("The gradient by the weight is divided by it", of("dw"), LIMIT),
            bounded("The gradient stands at a right angle to the weight", of("radial"), LIMIT),
            paired_ratio("A step turns small weights (× 0.01) by far more than large ones (× 100)", turns, 1000.0),
            bounded("In training |w|² grows by the sum of lr² |dL/dw|²", growth, GROWTH_LIMIT),
            paired_ratio("The weights end longer than they began (|w|²)", longer, 1.0),
        ]
    )


def plot(runs: Sequence[Run]) -> list[Plot]:
    from . import plots

    figure, axes = plots.panels(3)
    rows = [[run.result["scales"][i] for run in runs] for i in range(len(SCALES))]
    for index, (key, label) in enumerate((("dw_size", "|dL/dw|"), ("turn", "turn of a step, degrees"))):
        plots.line(axes[0], SCALES, [plots.median([r[key] for r in row]) for row in rows], index, label)
    axes[0].set(xscale="log", yscale="log")
    plots.dress(axes[0], "Larger weights move less", "scale a of the weight", "")
    plots.legend(axes[0])
    for index, (key, label) in enumerate((("output", "output"), ("du", "dL/du"), ("dw", "a dL/d(aw)"))):
        plots.line(axes[1], SCALES, [max(max(r[key] for r in row), 1e-17) for row in rows], index, label)
    axes[1].axhline(LIMIT, **plots.REFERENCE)
    axes[1].set(xscale="log", yscale="log")
    plots.dress(axes[1], "What does not change", "scale a of the weight", "relative difference from a = 1")
    plots.legend(axes[1], "upper right")
    _plot_growth(axes[2], runs)
    description = (
        "Left: the size of the gradient by the weight, and the angle by which a step of 0.1 turns the weight, "
        "against the scale of the weight. Middle: the largest relative difference from scale 1 of the output and of "
        "both gradients; dashed is the limit of the verdict. Right: the squared length of a convolution's weight "
        "while it trains on real images, measured, and as the sum of squared steps predicts it."
    )
    return [plots.finish(figure, "scale_invariance", "The scale of the weights under batch norm", description)]


def _plot_growth(axis: Any, runs: Sequence[Run]) -> None:
    from . import plots

    steps = [i * runs[0].result["every"] for i in range(len(runs[0].result["measured"]))]
    for index, (key, label) in enumerate((("measured", "measured |w|²"), ("predicted", "|w₀|² + Σ lr² |dL/dw|²"))):
        values = [[run.result[key][i] / run.result["measured"][0] for run in runs] for i in range(len(steps))]
        axis.plot(
            steps,
            [plots.median(v) for v in values],
            color=plots.SERIES[index * 2],
            linewidth=5 - 3 * index,
            alpha=0.45 if index == 0 else 1.0,
            linestyle="-" if index == 0 else (0, (4, 2)),
            label=label,
        )
    plots.dress(axis, "Training lengthens the weights", "step", "relative to the start")
    plots.legend(axis, "upper left")


STUDY = Study(
    name="scale_invariance",
    title="The scale of the weights",
    claim="Batch norm makes a layer blind to the scale of the weights before it, so larger weights move less, and "
    "gradient descent only ever lengthens them.",
    experiment="y = BN(w u) with 64 inputs of 20 features and 8 channels in float64 and eps 1e-12; w is replaced by "
    "a w for a from 0.01 to 100 and the output, both gradients and the turn of one step of rate 0.1 are "
    "compared. Then a three-convolution network is trained on real images by plain SGD of rate 1 while |w|² of "
    "its first convolution is recorded.",
    rule="No relative difference of the output, of d/du, of a d/d(a w) from those at a = 1, nor the cosine between w "
    "and its gradient, exceeds 1e-6 for any a and seed; |w|² follows |w0|² + sum lr² |dL/dw|² to 0.1 %. Over "
    "seeds a step turns weights of scale 0.01 by more than 1,000 times what it turns those of scale 100, and the "
    "trained weights are longer than the initial ones.",
    papers=("Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.3", "van Laarhoven 2017, arXiv:1706.05350"),
    seconds=(3.0, 5.0),
    plan=plan,
    run=run,
    judge=judge,
    plot=plot,
)
