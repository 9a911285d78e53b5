"""Gradients and saturated units layer by layer over a training: three activations, three starts, with and without BN.

The gradient at layer k is the product of all the layers above it; a factor below 1 makes it vanish, one above explode.
A unit is saturated where its slope is under a tenth of the activation's largest: sigmoid outside of ±3.6, tanh of ±1.8,
ReLU where it is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from . import data, nets, training
from .rules import less_than, more_than, times
from .study import Params, Plot, Preset, Result, Run, Study, only

DEPTH, BATCH, RATE = 10, 64, 0.1
STARTS: tuple[nets.Start, ...] = ("default", "unit", "right")
ARMS = [f"{start}, no norm" for start in STARTS] + [f"{start}, batch norm" for start in STARTS[:2]]
ACTIVATIONS = list(nets.ACTIVATIONS)
LOOKED = 500  # images that the layers are looked at with
SATURATED = {"sigmoid": 0.1 * 0.25, "tanh": 0.1, "relu": 0.5}  # slopes under which a unit counts as saturated


def plan(preset: Preset) -> list[Params]:
    looks = [0, 20, 100] if preset.quick else [0, 20, 100, 400]
    return [
        {"activation": activation, "arm": arm, "looks": looks, "seed": seed, "data": preset.data}
        for seed in preset.seed_range()
        for activation in ACTIVATIONS
        for arm in ARMS
    ]


def run(params: Params) -> Result:
    """gradient[look][layer]: |dL/dW| of each hidden layer; saturated[look][layer]: share of units; accuracy: at end."""
    images = data.load(params["data"], params["seed"])
    start, _, norm = params["arm"].partition(", ")
    kind: nets.Norm = "batch" if norm == "batch norm" else "none"
    model = nets.deep_mlp(images, kind, params["activation"], DEPTH, params["seed"], start=start)
    looks: list[tuple[list[float], list[float]]] = []

    def look(step: int) -> None:
        if step in params["looks"]:
            looks.append(_looked(model, params["activation"], images.train_x[:LOOKED], images.train_y[:LOOKED]))

    look(0)
    plan = training.Plan(BATCH, params["looks"][-1], RATE, momentum=0.0)
    finished = training.train(model, images, plan, params["seed"], look)
    accuracy = 1 - training.test(model.eval(), images.test_x, images.test_y)[1] if finished else 0.0
    return {"gradient": [g for g, _ in looks], "saturated": [s for _, s in looks], "accuracy": accuracy}


def _looked(model: nn.Sequential, activation: str, x: Tensor, y: Tensor) -> tuple[list[float], list[float]]:
    """Gradient norms and saturated shares of the hidden layers; the model's running statistics are given back."""
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    saturated: list[float] = []
    out = x
    for layer in model:
        out = layer(out)
        if isinstance(layer, nets.ACTIVATIONS[activation]):  # type: ignore[arg-type]  # they are classes
            saturated.append(float((_slope(out.detach(), activation) < SATURATED[activation]).float().mean()))
    weights = [layer.weight for layer in model if isinstance(layer, nn.Linear)][:-1]
    gradients = torch.autograd.grad(cross_entropy(out, y), weights)
    model.load_state_dict(kept)
    return [float(g.norm()) for g in gradients], saturated


def _slope(out: Tensor, activation: str) -> Tensor:
    """Of the activation, from its output."""
    if activation == "sigmoid":
        return out * (1 - out)
    return 1 - out.square() if activation == "tanh" else (out > 0).float()


def flow(runs: Sequence[Run], activation: str, arm: str) -> float:
    """The gradient of the first layer over that of the last hidden one, before training."""
    first, *_, last = only(runs, activation=activation, arm=arm)["gradient"][0]
    return float(max(first, 1e-30) / max(last, 1e-30))


def stuck(runs: Sequence[Run], activation: str, arm: str) -> float:
    """Per cent of saturated units before training, mean over the layers."""
    shares = only(runs, activation=activation, arm=arm)["saturated"][0]
    return 100 * float(sum(shares) / len(shares))


PARTS = (
    times("From torch's start the gradient of a sigmoid network shrinks towards the first layer", 1000.0,
          "three decades: no rate serves both ends", lambda r: 1 / flow(r, "sigmoid", "default, no norm")),
    times("Batch norm gives most of that back", 100.0, "a tenth of what was lost, or less, stays lost",
          lambda r: flow(r, "sigmoid", "default, batch norm") / flow(r, "sigmoid", "default, no norm")),
    times("So does the right start alone", 100.0, "as for batch norm",
          lambda r: flow(r, "sigmoid", "right, no norm") / flow(r, "sigmoid", "default, no norm")),
    times("Under BN the first layer's gradient of the ReLU network is the larger one", 1.0,
          "then BN does not solve it: the gradient grows on its way down",
          lambda r: flow(r, "relu", "default, batch norm")),
    more_than("Unit weights saturate a sigmoid network", 20.0, "% of units", "a fifth of the units hardly learn",
              lambda r: stuck(r, "sigmoid", "unit, no norm")),
    less_than("Batch norm keeps the same network out of saturation", 5.0, "% of units", "too few to matter",
              lambda r: stuck(r, "sigmoid", "unit, batch norm")),
)  # fmt: skip


def plot(runs: Sequence[Run]) -> list[Plot]:
    from . import plots

    drawn = []
    layers = list(range(1, DEPTH + 1))
    trained = f"after {runs[0].params['looks'][-1]} steps"
    for key, what, place, label, title in (
        ("gradient", "gradient", 0, "|dL/dW|", "Gradients by layer before training"),
        ("saturated", "saturated", 0, "saturated units, %", "Saturated units by layer before training"),
        ("trained", "saturated", len(runs[0].params["looks"]) - 1, "saturated units, %",
         f"Saturated units by layer {trained}"),
    ):  # fmt: skip
        figure, axes = plots.panels(3, share_y=True, height=4.3)
        for axis, activation in zip(axes, ACTIVATIONS, strict=True):
            for index, arm in enumerate(ARMS):
                of_arm = [
                    r.result[what] for r in runs if (r.params["activation"], r.params["arm"]) == (activation, arm)
                ]
                found = [looks[place] for looks in of_arm if len(looks) > place]
                if not found:
                    continue
                scale = 1 if what == "gradient" else 100
                groups = [[scale * max(f[i], 1e-12) for f in found] for i in range(DEPTH)]
                plots.median_line(axis, layers, groups, index, arm)
            axis.set_yscale("log" if what == "gradient" else "linear")
            plots.dress(axis, activation, "layer", label)
            plots.legend(axis, "below", 1)
        description = (
            f"{title}: {label} of each of {DEPTH} hidden layers, a line for each start and norm; medians over seeds, "
            "shades from the smallest to the largest."
        )
        if what == "saturated":
            description += " A ReLU counts as saturated where it is 0: half of them is its usual state."
        if place:
            description += " Arms that diverged are left out; the verdict is of the shares before training."
        drawn.append(plots.finish(figure, f"vanishing_gradient-{key}", title, description))
    return drawn


STUDY = Study(
    name="vanishing_gradient",
    title="Vanishing gradients and saturation",
    claim="In a deep sigmoid network the gradient vanishes on its way down and units saturate; batch norm prevents "
    "both. "
    "But so does the right start, and in a ReLU network batch norm turns vanishing into growth.",
    who="Ioffe & Szegedy 2015 (section 3.2: BN keeps inputs of sigmoids out of saturation and gradients from "
    "vanishing); "
    "Yang et al. 2019 for the growth.",
    experiment=f"{DEPTH} layers of 64 units on real images, sigmoid, tanh and ReLU; weights drawn with "
    "torch.nn.Linear's "
    "deviation, with deviation 1, or with the one made for the activation; without a norm, and with "
    f"normkit.BatchNorm1d for the first two. Before and during a training by plain SGD of rate {RATE}, over {LOOKED} "
    "training images: the norm of each layer's gradient, and the share of units whose slope is under a tenth of the "
    "largest.",
    parts=PARTS,
    paper="Ioffe & Szegedy 2015 give no gradients; their figure 1 shows the input of a sigmoid drifting without BN. "
    "Yang et al. 2019 derive a growth of about 1.21 per ReLU layer in wide networks, "
    "1.21^9 = 5.6 over these.",
    doubt="The two faults are apart: from torch's start no sigmoid unit is saturated, and the gradient vanishes "
    "all the same, since a slope is at most 1/4. \"Most of that back\" was asked as a factor of 100, far below what "
    "was lost, and either cure gives back nearly all. Skip connections carry the gradient past all of this; ten "
    "layers are few for the growth under BN to hurt.",
    advice="With saturating activations, look at the share of saturated units before tuning anything. Batch norm is "
    "one "
    "cure, gain 4 with a centred bias another; very deep ReLU networks with BN need skip connections.",
    papers=(
        "Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.2",
        "Glorot & Bengio 2010, AISTATS",
        "Yang et al. 2019, arXiv:1902.08129",
    ),
    seconds=(0.3, 1.0),
    plan=plan,
    run=run,
    plot=plot,
)  # fmt: skip
