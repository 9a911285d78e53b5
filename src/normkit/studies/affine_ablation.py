"""What gamma and beta give back: batch norm with both, with one of them, and with neither."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

import normkit as nk

from . import data, nets
from .rules import less_than, more_than
from .study import Params, Plot, Preset, Result, Run, Study
from .tuned import accuracy, fitted

RATES = [0.1, 0.32, 1.0, 3.2]
ACTIVATIONS = ["relu", "sigmoid", "tanh"]
DEPTH = 6


def _beta(units: int) -> nn.Module:
    layer = nk.BatchNorm1d(units)
    layer.weight.requires_grad_(False)
    return layer


ARMS: dict[str, Callable[[int], nn.Module]] = {
    "both": nk.BatchNorm1d,
    "gamma": lambda units: nk.BatchNorm1d(units, bias=False),
    "beta": _beta,
    "neither": lambda units: nk.BatchNorm1d(units, affine=False),
}


def plan(preset: Preset) -> list[Params]:
    steps = 120 if preset.quick else 240
    return [
        {"activation": activation, "arm": arm, "rate": rate, "steps": steps, "seed": seed, "data": preset.data}
        for seed in preset.seed_range()
        for activation in ACTIVATIONS
        for arm in ARMS
        for rate in RATES
    ]


def run(params: Params) -> Result:
    """As tuned.fitted."""
    images = data.load(params["data"], params["seed"])
    make = ARMS[params["arm"]]
    model = nets.deep_mlp(images, "batch", params["activation"], DEPTH, params["seed"], make=make)
    return fitted(model, images, params)


def behind(runs: Sequence[Run], activation: str, arm: str) -> float:
    """How much an arm is behind gamma and beta together, % points."""
    both, other = (accuracy(runs, activation=activation, arm=name) for name in ("both", arm))
    return both - other


PARTS = (
    more_than("Without gamma and beta a ReLU network is behind", 1.0, "% points", "ten images in a thousand",
              lambda r: behind(r, "relu", "neither")),
    more_than("So is a sigmoid network, which sees only the middle of its activation", 1.0, "% points",
              "ten images in a thousand", lambda r: behind(r, "sigmoid", "neither")),
    less_than("Beta alone leaves a ReLU network behind both by", 1.0, "% points", "ten images in a thousand",
              lambda r: behind(r, "relu", "beta")),
)  # fmt: skip


def plot(runs: Sequence[Run]) -> list[Plot]:
    from .comparison import compared

    arms = {arm: lambda r, a, arm=arm: accuracy(r, activation=a, arm=arm) for arm in ARMS}
    apart = {f"{arm}": lambda r, a, arm=arm: -behind(r, a, arm) for arm in list(ARMS)[1:]}
    description = (
        f"Left: test accuracy of networks of {DEPTH} layers with batch norm that has gamma and beta, one of them, or "
        "neither, each at the rate chosen on validation images; medians over seeds. Right: the same minus that with "
        "both, mean and 95 % interval."
    )
    titles = ("What gamma and beta give back", "", "Ahead of both")
    return [compared("affine_ablation", runs, ACTIVATIONS, arms, apart, titles, description, "words")]


STUDY = Study(
    name="affine_ablation",
    title="What gamma and beta give back",
    claim="Standardizing alone costs a network expressiveness; gamma and beta give it back, and most of it is beta.",
    who="Ioffe & Szegedy 2015 (section 3: normalizing the inputs of a sigmoid would constrain them to its linear "
    "regime; gamma and beta restore what the layer can represent).",
    experiment=f"{DEPTH} layers of 64 units on real images, ReLU, sigmoid and tanh, normkit.BatchNorm1d before each "
    "activation and no other bias; with gamma and beta, with one of them, with neither; plain SGD with batches of 64 "
    "at four rates, of which validation images choose one for each. The same draws of the weights for all.",
    parts=PARTS,
    paper="The paper argues it and shows no figure. Ours: the right panel.",
    doubt="The last layer has a bias and a free scale; a shallower network has less to lose. After more steps the "
    "rest of the network may make up for it. With gamma and beta most sigmoid networks chose the largest rate that "
    "was tried, so theirs may be too low.",
    advice="Leave affine on: it costs two numbers per channel, and where it matters at all, with sigmoid, it "
    "helps. Do not expect much of it, and where a layer that follows has its own scale, gamma can go first.",
    papers=("Ioffe & Szegedy 2015, arXiv:1502.03167, section 3", "Frankle et al. 2021, arXiv:2003.00152"),
    seconds=(0.17, 0.35),
    plan=plan,
    run=run,
    plot=plot,
)
