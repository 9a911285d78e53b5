"""Which way a gradient step goes: a product of weights whose output shall fall, and a deep net that stays alive.

The chain: y = w_m ... w_1 x, J = mean(x y) = c prod(w), c = mean(x^2), so y shall fall for every
sample alike. The step multiplies (w_i - r g_i); its second-order term is r^2 / 2 g'Hg (Goodfellow, Bengio & Courville
2016, section 8.7.1). With batch norm between linear factors all factors but the last are erased (no scale passes), so
batch norm is judged on a ReLU network instead, whose lower layers live. All in float64; closed forms for the chain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import normkit as nk

from .rules import less_than, more_than, times
from .study import Params, Plot, Preset, Result, Run, Study

DEPTHS = [2, 4, 8, 16, 32]
WEIGHTS = [0.6, 0.8, 1.0, 1.2, 1.4]
RATES = [0.03, 0.1, 0.3]
RATE = RATES.index(0.1)
DRAWS = 10  # chains or nets per seed and cell, of which a share goes the wrong way
SAMPLES, WIDTH = 64, 16
NORMS = ["none", "batch"]
LABELS = {"none": "no norm", "batch": "batch norm"}
NET_DEPTHS = [4, 8, 16]
GAINS = [0.5, 1.0, 1.5, 2.0, 3.0]


def plan(preset: Preset) -> list[Params]:
    return [{"seed": seed, "draws": DRAWS} for seed in preset.seed_range()]


def run(params: Params) -> Result:
    """chain[rate][depth][weight], net[norm][depth][gain]: shares of steps after which J is larger than before.

    second[depth][weight]: the median of (r^2 / 2 g'Hg) / (r |g|^2) of the chain; alive: the gradient of the net's first
    layer over that of its last, with batch norm, depth 16; erased: the same of the linear chain with batch norm.
    """
    generator = torch.Generator().manual_seed(params["seed"])
    draws = range(params["draws"])
    chain = [[[0.0 for _ in WEIGHTS] for _ in DEPTHS] for _ in RATES]
    second = [[0.0 for _ in WEIGHTS] for _ in DEPTHS]
    for d, depth in enumerate(DEPTHS):
        for w, weight in enumerate(WEIGHTS):
            made = [_product(depth, weight, generator) for _ in draws]
            second[d][w] = sorted(second_order(c, x, RATES[RATE]) for c, x in made)[len(made) // 2]
            for r, rate in enumerate(RATES):
                chain[r][d][w] = sum(change(c, x, rate) > 0 for c, x in made) / len(made)
    net = {
        norm: [[_share([_net_change(norm, d, gain, generator) for _ in draws]) for gain in GAINS] for d in NET_DEPTHS]
        for norm in NORMS
    }
    return {"chain": chain, "second": second, "net": net, "alive": _alive(True, generator),
            "erased": _alive(False, generator)}  # fmt: skip


def _product(depth: int, weight: float, generator: torch.Generator) -> tuple[Tensor, float]:
    """(m,) factors of about `weight`, and c = mean(x^2)."""
    spread = 0.05 * torch.randn(depth, dtype=torch.float64, generator=generator)
    x = torch.randn(SAMPLES, dtype=torch.float64, generator=generator)
    return weight * (1 + spread), float(x.square().mean())


def change(factors: Tensor, c: float, rate: float) -> float:
    """J after the step minus J before; an overflow to infinity keeps its sign."""
    gradient = c * factors.prod() / factors
    return c * float((factors - rate * gradient).prod() - factors.prod())


def second_order(factors: Tensor, c: float, rate: float) -> float:
    """(r^2 / 2 g'Hg) / (r |g|^2): above 1 the second-order term outweighs what the gradient promises."""
    product = c * factors.prod()
    gradient = product / factors
    # H_ij = J / (w_i w_j) off the diagonal, 0 on it; g_i = J / w_i
    inverse = 1 / factors
    curved = product * ((gradient * inverse).sum() ** 2 - (gradient * inverse).square().sum())
    return float(rate / 2 * curved / gradient.square().sum())


def _net(norm: str, depth: int, gain: float, generator: torch.Generator) -> nn.Sequential:
    """Linear layers of He's start times `gain`, each with its norm and ReLU, and one output."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers.append(nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.float64))
        layers += [nk.BatchNorm1d(WIDTH, dtype=torch.float64)] if norm == "batch" else []
        layers.append(nn.ReLU())
    layers.append(nn.Linear(WIDTH, 1, bias=False, dtype=torch.float64))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=gain * math.sqrt(2 / WIDTH), generator=generator)
    return nn.Sequential(*layers)


def _net_change(norm: str, depth: int, gain: float, generator: torch.Generator) -> float:
    """Of J = mean(t y) for a fixed random t: its change by one step of rate RATES[RATE]."""
    x, t = (torch.randn(SAMPLES, n, dtype=torch.float64, generator=generator) for n in (WIDTH, 1))
    model = _net(norm, depth, gain, generator)
    parameters = list(model.parameters())
    before = (t * model(x)).mean()
    gradients = torch.autograd.grad(before, parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(gradient, alpha=RATES[RATE])
        return float((t * model(x)).mean() - before)


def _alive(is_net: bool, generator: torch.Generator) -> float:
    """|gradient of the first weight| / |gradient of the last one| with batch norm between, depth 16."""
    if is_net:
        x, t = (torch.randn(SAMPLES, n, dtype=torch.float64, generator=generator) for n in (WIDTH, 1))
        model = _net("batch", 16, 1.0, generator)
    else:
        x = torch.randn(SAMPLES, 1, dtype=torch.float64, generator=generator)
        t = x
        factors = [nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in range(17)]
        for factor in factors:
            nn.init.constant_(factor.weight, 1.0)
        norms = [nk.BatchNorm1d(1, dtype=torch.float64) for _ in range(16)]
        model = nn.Sequential(*(layer for pair in zip(factors, norms, strict=False) for layer in pair), factors[-1])
    weights = [layer.weight for layer in model if isinstance(layer, nn.Linear)]
    first, *_, last = torch.autograd.grad((t * model(x)).mean(), weights)
    return float(first.norm() / last.norm())


def _share(changes: Sequence[float]) -> float:
    """Of changes that are not below 0; what is not a number went nowhere good."""
    return sum(not change < 0 for change in changes) / len(changes)


def _cell(runs: Sequence[Run], depth: int, weight: float) -> float:
    """Per cent of the chain's steps that go the wrong way, at rate 0.1."""
    return 100 * float(runs[0].result["chain"][RATE][DEPTHS.index(depth)][WEIGHTS.index(weight)])


def _net_cell(runs: Sequence[Run], norm: str, depth: int, gain: float) -> float:
    return 100 * float(runs[0].result["net"][norm][NET_DEPTHS.index(depth)][GAINS.index(gain)])


def _rarer(runs: Sequence[Run], depth: int, gain: float) -> float:
    return _net_cell(runs, "none", depth, gain) - _net_cell(runs, "batch", depth, gain)


PARTS = (
    more_than("A product of 16 weights near 1.4 rises where it should fall", 50.0, "% of steps",
              "more often than a coin", lambda r: _cell(r, 16, 1.4)),
    more_than("At weights near 1.2 it goes wrong more often at depth 32 than at 4", 50.0, "% points",
              "depth alone turns the step", lambda r: _cell(r, 32, 1.2) - _cell(r, 4, 1.2)),
    less_than("At weights near 0.8 it goes wrong at no depth", 1.0, "% of steps",
              "small products have small higher terms", lambda r: max(_cell(r, d, 0.8) for d in DEPTHS)),
    times("The second-order term outweighs the first-order one at depth 16 and weight 1.4", 1.0,
          "then the gradient's promise is void", lambda r: r[0].result["second"][DEPTHS.index(16)][-1]),
    more_than("With BN the step of a ReLU network of depth 8 and gain 3 goes wrong less often", 10.0, "% points",
              "one step in ten is seen in training", lambda r: _rarer(r, 8, 3.0)),
    more_than("So does that of depth 16 at He's start, gain 1", 0.0, "% points",
              "the usual start, where any help counts", lambda r: _rarer(r, 16, 1.0)),
    more_than("At depth 16 the lower layers live under BN: gradient of the first over the last", 0.1, "",
              "an erased layer is not trained", lambda r: r[0].result["alive"]),
)  # fmt: skip


def plot(runs: Sequence[Run]) -> list[Plot]:
    from . import plots

    figure, axes = plots.panels(3)
    for index, weight in enumerate(WEIGHTS):
        shares = [[_cell([r], depth, weight) for r in runs] for depth in DEPTHS]
        plots.mean_line(axes[0], DEPTHS, shares, index, f"w = {weight:g}")
        terms = [[r.result["second"][d][index] for r in runs] for d in range(len(DEPTHS))]
        plots.median_line(axes[1], DEPTHS, terms, index, f"w = {weight:g}")
    for index, norm in enumerate(NORMS):
        for depth, shift in ((8, 0), (16, 2)):
            shares = [[_net_cell([r], norm, depth, gain) for r in runs] for gain in GAINS]
            plots.mean_line(axes[2], GAINS, shares, index + shift, f"{LABELS[norm]}, depth {depth}")
    for axis in axes[:2]:
        axis.set_xscale("log", base=2)
        axis.set_xticks(DEPTHS, [str(depth) for depth in DEPTHS])
    axes[1].set_yscale("log")
    axes[1].axhline(1.0, **plots.REFERENCE)
    for axis in (axes[0], axes[2]):
        axis.set_ylim(-3, 103)
    plots.dress(axes[0], "Product of weights", "depth m", "steps that go the wrong way, %")
    plots.dress(axes[1], "Its second-order term", "depth m", "over the first-order term")
    plots.dress(axes[2], "ReLU network", "gain of the start", "steps that go the wrong way, %")
    plots.legend(axes[0], "upper left")
    plots.legend(axes[2])
    description = (
        "Left: share of gradient steps of rate 0.1 after which a product of m weights near w has risen where it should "
        "have fallen, mean over seeds, the shade its 95 % interval. Middle: the second-order term of that step over "
        "its first-order term, medians, shades from the smallest to the largest; dotted where they are equal. Right: "
        "the same share for ReLU networks of depth 8 and 16, against the gain of "
        "their start, without and with batch norm."
    )
    return [plots.finish(figure, "step_sign", "Which way a gradient step goes", description)]


STUDY = Study(
    name="step_sign",
    title="A step that goes the wrong way",
    claim="In a deep product a gradient step that should lower the output can raise it, because the weights change "
    "together: the more so the deeper the product and the larger its weights. Batch norm makes it rarer in a network "
    "whose lower layers it does not erase.",
    who="Goodfellow, Bengio & Courville 2016 (section 8.7.1), in their account of why batch norm works.",
    experiment=f"y = w_m ... w_1 x, weights of about 0.6 to 1.4, depth 2 to 32; one step of gradient descent on "
    f"J = mean(x y), which should fall; {DRAWS} products per seed and cell, in float64. Then ReLU networks of "
    f"{WIDTH} units, He's start times a gain, J = mean(t y) with random t, with and without normkit.BatchNorm1d. "
    "Between linear factors of one unit batch norm erases every factor but the last, so that chain is not judged.",
    parts=PARTS,
    paper="The book gives no figure: it names the term r² g1 g2 w3 ... wm, negligible for small weights and "
    "exponentially large for large ones. The middle panel is that term, all pairs of weights summed.",
    doubt="J is linear in y, so nothing bounds the fall; a loss with a minimum would count an overshoot past it as "
    "wrong too. An odd product turns negative and falls by far too much, which is not counted as wrong here. "
    "Both networks step at the same rate, which is another unit under batch norm.",
    advice="Where a deep network jumps on its first steps, the gradient is right and the step is too long for it: "
    "lower the rate, or the gain of the start. Batch norm forgives a large gain; at depth 16 without skips it makes "
    "the first layer's gradient many times the last one's, so begin with a smaller rate there too.",
    papers=(
        "Goodfellow, Bengio & Courville 2016, Deep Learning, section 8.7.1",
        "Ioffe & Szegedy 2015, arXiv:1502.03167",
    ),
    seconds=(1.2, 1.2),
    plan=plan,
    run=run,
    plot=plot,
    changes=("Replaces linear_chain, whose objective let y rise: there a step overshoots but never goes the wrong way. "
             "Its batch norm half could not fail: the lower factors were erased.",
             "The network's depths and gains were chosen after a pilot on seed 100, which is not judged.",),
)  # fmt: skip
