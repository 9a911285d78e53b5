"""Where the norm stands: before the activation, as in the paper, or after it."""

from __future__ import annotations

from collections.abc import Sequence

from . import data, nets
from .rules import less_than, more_than
from .study import Params, Plot, Preset, Result, Run, Study
from .tuned import accuracy, fitted

PLACES: tuple[nets.Place, ...] = ("before", "after", "both")
ACTIVATIONS = ["relu", "sigmoid", "tanh"]
RATES = [0.1, 0.32, 1.0, 3.2]
DEPTH = 8


def plan(preset: Preset) -> list[Params]:
    steps = 120 if preset.quick else 240
    return [
        {"activation": activation, "place": place, "rate": rate, "steps": steps, "seed": seed, "data": preset.data}
        for seed in preset.seed_range()
        for activation in ACTIVATIONS
        for place in PLACES
        for rate in RATES
    ]


def run(params: Params) -> Result:
    """As tuned.fitted."""
    images = data.load(params["data"], params["seed"])
    place: nets.Place = params["place"]
    model = nets.deep_mlp(images, "batch", params["activation"], DEPTH, params["seed"], place=place)
    return fitted(model, images, params)


def ahead(runs: Sequence[Run], activation: str, place: str = "after") -> float:
    """Before the activation minus another place, % points."""
    first, second = (accuracy(runs, activation=activation, place=at) for at in ("before", place))
    return first - second


PARTS = (
    more_than("With ReLU the norm before the activation ends ahead of the norm after it", 0.5, "% points",
              "five images in a thousand", lambda r: ahead(r, "relu")),
    more_than("So it does with sigmoid", 0.5, "% points", "five images in a thousand", lambda r: ahead(r, "sigmoid")),
    less_than("A second norm adds, with ReLU", 1.0, "% points", "it doubles the cost",
              lambda r: -ahead(r, "relu", "both")),
)  # fmt: skip


def plot(runs: Sequence[Run]) -> list[Plot]:
    from .comparison import compared

    arms = {str(place): lambda r, a, place=place: accuracy(r, activation=a, place=place) for place in PLACES}
    apart = {f"{place}": lambda r, a, place=place: -ahead(r, a, place) for place in PLACES[1:]}
    description = (
        f"Left: test accuracy of networks of {DEPTH} layers with batch norm before each activation, after it, or both, "
        "each at the rate chosen on validation images; medians over seeds. Right: the same minus that with the norm "
        "before, mean and 95 % interval."
    )
    titles = ("Where the norm stands", "", "Ahead of the norm before")
    return [compared("placement", runs, ACTIVATIONS, arms, apart, titles, description, "words")]


STUDY = Study(
    name="placement",
    title="Before or after the activation",
    claim="The norm belongs before the activation: there it keeps the activation's input in place and trains better.",
    who="Ioffe & Szegedy 2015 (section 3.2 puts it before the nonlinearity); practitioners have long reported that "
    "after is as good or better.",
    experiment=f"{DEPTH} layers of 64 units on real images, ReLU, sigmoid and tanh, normkit.BatchNorm1d before each "
    "activation, after it, or both; plain SGD with batches of 64 at four rates, of which validation images choose "
    "one for each. The same draws of the weights for all; layers whose norm stands after have a bias.",
    parts=PARTS,
    paper="The paper gives an argument and no comparison. Ours: the right panel; with tanh, which no part judges, "
    "the norm after the activation does as well.",
    doubt="Residual networks, where the place decides what the skip carries, are another question.",
    advice="Keep the place that the model at hand was tuned with; moving it is no cure for a network that does not "
    "train.",
    papers=("Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.2", "Mishkin et al. 2017, arXiv:1606.02228"),
    seconds=(0.22, 0.45),
    plan=plan,
    run=run,
    plot=plot,
)
