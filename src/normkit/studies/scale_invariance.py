"""Batch norm does not see the scale of the weights before it: BN((a w) u) = BN(w u).

Hence d/du is the same for a w and w, d/d(a w) = (1/a) d/dw, and <w, dL/dw> = 0 (Ioffe & Szegedy 2015, section 3.3):
larger weights move less, and plain gradient descent can only lengthen them, |w|^2 growing by lr^2 |dL/dw|^2 a step.
The identities are a test of the code, in float64 with eps = 1e-12: eps breaks them by about eps / var, which is shown
for the layer's default of 1e-5. The growth is a finding, on real data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import normkit as nk

from . import data, nets, training
from .rules import less_than, times, within
from .study import Params, Plot, Preset, Result, Run, Study

SCALES = [0.01, 0.1, 0.5, 1.0, 2.0, 10.0, 100.0]
EPS, DEFAULT_EPS = 1e-12, 1e-5
RATE = 0.1
TRAINING_RATE = 1.0  # batch norm trains at such a rate, and the growth is plain to see
LIMIT = 1e-6  # eps / var is 1e-8 for the smallest scale (var = a^2), and its effect on a gradient a few times that
GROWTH_LIMIT = 1e-3  # float32 training: the orthogonality that gives the sum holds to a few times eps / var


def plan(preset: Preset) -> list[Params]:
    steps = 150 if preset.quick else 500
    return [{"seed": seed, "rate": RATE, "steps": steps, "data": preset.data} for seed in preset.seed_range()]


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
    usual = _pass(u, w, target, DEFAULT_EPS)[2]
    broken = [_distance(scale * _pass(u, scale * w, target, DEFAULT_EPS)[2], usual) for scale in SCALES]
    return {"scales": rows, "default_eps": broken, **_growth(params)}


def _pass(u: Tensor, w: Tensor, target: Tensor, eps: float = EPS) -> tuple[Tensor, Tensor, Tensor]:
    """u: (N, D), w: (C, D). The output of BN(w u) and the gradients of a cubic loss with respect to u and w."""
    u, w = u.detach().requires_grad_(), w.detach().requires_grad_()
    y = nk.BatchNorm1d(len(w), eps=eps, affine=False, dtype=torch.float64)(u @ w.T)
    du, dw = torch.autograd.grad(((y - target).abs() ** 3).mean(), (u, w))
    return y.detach(), du, dw


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def _turn(before: Tensor, after: Tensor) -> float:
    """The angle in degrees between two weights, by the tangent: an arc cosine is blind below 1e-6."""
    radial = (before * after).sum() / (before * before).sum() * before
    return math.degrees(math.atan2(float((after - radial).norm()), float(radial.norm())))


def _growth(params: Params) -> Result:
    """|w|^2 of a convolution before batch norm over training by plain SGD, beside |w0|^2 + sum lr^2 |dw|^2."""
    images = data.load(params["data"], params["seed"])
    model = nets.conv_net(images, "batch", params["seed"])
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


def _all(key: str) -> Any:
    return lambda runs: [row[key] for row in runs[0].result["scales"]]


def _ratio(runs: Sequence[Run], above: str, below: str) -> float:
    return float(runs[0].result[above][-1] / runs[0].result[below][-1])


def _turns(runs: Sequence[Run]) -> float:
    rows = runs[0].result["scales"]
    return float(rows[0]["turn"] / rows[-1]["turn"])


EXACT = "float64; eps / var is 1e-8 at the smallest scale"
PARTS = (
    within("The output does not depend on the scale", LIMIT, EXACT, _all("output")),
    within("Nor does the gradient with respect to the input", LIMIT, EXACT, _all("du")),
    within("The gradient with respect to the weight is divided by the scale", LIMIT, EXACT, _all("dw")),
    within("That gradient stands at a right angle to the weight (cosine)", LIMIT, EXACT, _all("radial")),
    times("A step turns small weights (× 0.01) by more than large ones (× 100)", 1000.0,
          "a factor 10,000 of scale makes up to 10^8; a thousandth of that is no accident", _turns),
    within("In training |w|² grows by the sum of lr² |dL/dw|², relative", GROWTH_LIMIT,
           "float32, and eps / var", lambda r: [_ratio(r, "measured", "predicted") - 1]),
    times("The weights end longer than they began, |w|²", 1.02, "2 % is more than rounding and seen in a log",
          lambda r: r[0].result["measured"][-1] / r[0].result["measured"][0]),
    less_than("With the default eps of 1e-5 the gradient's rule still holds at scale 0.1, difference", 0.01, "",
              "1 % is below the noise of a batch", lambda r: r[0].result["default_eps"][SCALES.index(0.1)]),
)  # fmt: skip


def plot(runs: Sequence[Run]) -> list[Plot]:
    from . import plots

    figure, axes = plots.panels(3, height=4.1)
    rows = [[run.result["scales"][i] for run in runs] for i in range(len(SCALES))]
    for index, key in enumerate(("dw_size", "turn")):
        unit = [plots.median([r[key] for r in row]) / plots.median([r[key] for r in rows[3]]) for row in rows]
        plots.line(axes[0], SCALES, unit, index, ("|dL/dw|", "angle of a step")[index])
    axes[0].set(xscale="log", yscale="log")
    plots.dress(axes[0], "Larger weights move less", "scale a of the weight", "relative to a = 1")
    plots.legend(axes[0], "below", 1)
    others = [i for i, scale in enumerate(SCALES) if scale != 1.0]  # at 1 the difference is 0
    x = [SCALES[i] for i in others]
    for index, (key, label) in enumerate((("output", "output"), ("du", "dL/du"), ("dw", "a dL/d(aw)"))):
        plots.line(axes[1], x, [max(r[key] for r in rows[i]) for i in others], index, label)
    worst = [max(run.result["default_eps"][i] for run in runs) for i in others]
    plots.line(axes[1], x, worst, 3, "a dL/d(aw), eps 1e-5")
    axes[1].axhline(LIMIT, **plots.REFERENCE)
    axes[1].set(xscale="log", yscale="log")
    plots.dress(axes[1], "What does not change", "scale a of the weight", "difference from a = 1")
    plots.legend(axes[1], "below")
    _plot_growth(axes[2], runs)
    description = (
        "Left: the size of the gradient with respect to the weight and the angle by which a step of 0.1 turns it, "
        "against the scale of the weight, both relative to scale 1. Middle: the largest relative difference over "
        "the seeds from scale "
        "1 of the output and of both gradients, and of the last with the default eps; dashed is the limit of the "
        "verdict. Right: the squared length of a convolution's weight "
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
    plots.dress(axis, "Training lengthens them", "step", "|w|² relative to the start")
    plots.legend(axis, "below", 1)


STUDY = Study(
    name="scale_invariance",
    title="The scale of the weights",
    claim="Batch norm makes a layer blind to the scale of the weights before it, so larger weights move less, and "
    "gradient descent only ever lengthens them.",
    who="Ioffe & Szegedy 2015 (section 3.3: BN(Wu) = BN((aW)u), and larger weights lead to smaller gradients).",
    experiment="y = BN(w u) with 64 inputs of 20 features and 8 channels in float64 and eps 1e-12; w is replaced by "
    "a w for a from 0.01 to 100 and the output, both gradients and the turn of one step of rate 0.1 are compared; the "
    "last once more with the default eps. Then a three-convolution network is trained on real images by plain SGD of "
    "rate 1 while |w|² of its first convolution is recorded. The first four parts test the code, the rest is found.",
    parts=PARTS,
    paper="The paper states the two identities without a figure; van Laarhoven 2017 derives that the effective rate is "
    "lr / |w|² and shows it falling in training. The left and the right panel are those two statements.",
    doubt="eps: at scale 0.01 the default of 1e-5 is no longer small beside the variance, and the identities are off "
    "by 6 to 20 %. Weight decay would shorten what gradient descent lengthens; momentum changes the sum.",
    advice="Do not read the size of weights before a norm as their importance. With weight decay, the decay sets the "
    "effective rate of such layers: tune the two together.",
    papers=("Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.3", "van Laarhoven 2017, arXiv:1706.05350"),
    seconds=(0.8, 2.5),
    plan=plan,
    run=run,
    plot=plot,
)
