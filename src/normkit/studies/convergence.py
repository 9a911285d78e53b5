"""With and without batch norm at equal rates: is the gain in speed the norm's, or the larger rate's that it allows?"""

from __future__ import annotations

from collections.abc import Sequence

from . import data, nets
from .rules import more_than
from .study import Params, Plot, Preset, Result, Run, Study, only
from .tuned import LOOKS, accuracy, fitted

RATES = [0.01, 0.032, 0.1, 0.32, 1.0]
NORMS: tuple[nets.Norm, ...] = ("none", "batch")
DEPTH = 10


def plan(preset: Preset) -> list[Params]:
    steps = 240 if preset.quick else 480
    return [
        {"norm": norm, "rate": rate, "steps": steps, "seed": seed, "data": preset.data}
        for seed in preset.seed_range()
        for norm in NORMS
        for rate in RATES
    ]


def run(params: Params) -> Result:
    """As tuned.fitted."""
    images = data.load(params["data"], params["seed"])
    return fitted(nets.deep_mlp(images, params["norm"], "relu", DEPTH, params["seed"]), images, params)


def speed(runs: Sequence[Run], norm: str, rate: float) -> float:
    """Mean validation accuracy over the training, %: high where a network learns early."""
    return 100 * sum(only(runs, norm=norm, rate=rate)["curve"]) / LOOKS


def ahead(runs: Sequence[Run], rate: float) -> float:
    return speed(runs, "batch", rate) - speed(runs, "none", rate)


PARTS = (
    more_than("At rate 0.01 batch norm learns faster", 1.0, "% points", "a tenth of a typical spread",
              lambda r: ahead(r, 0.01)),
    more_than("So it does at 0.1", 1.0, "% points", "a tenth of a typical spread", lambda r: ahead(r, 0.1)),
    more_than("So it does at 1", 10.0, "% points", "there the other diverges or nearly so", lambda r: ahead(r, 1.0)),
    more_than("Each at its own rate, batch norm ends ahead", 1.0, "% points", "ten images in a thousand",
              lambda r: accuracy(r, norm="batch") - accuracy(r, norm="none")),
)  # fmt: skip


def plot(runs: Sequence[Run]) -> list[Plot]:
    from .comparison import compared

    labels: dict[nets.Norm, str] = {"none": "no norm", "batch": "batch norm"}
    arms = {label: lambda r, rate, norm=norm: 100 * only(r, norm=norm, rate=rate)["accuracy"]
            for norm, label in labels.items()}  # fmt: skip
    description = (
        f"Left: test accuracy of a ReLU network of {DEPTH} layers after training at equal rates, without and with "
        "batch norm; medians over seeds, shades from the worst to the best; 0 is a training that diverged. Right: how "
        "much faster the one with "
        "batch norm learns: validation accuracy, mean over the training, minus the other's; mean and 95 % interval."
    )
    titles = ("Convergence at equal rates", "learning rate", "Batch norm ahead, mean over training")
    return [compared("convergence", runs, RATES, arms, {"": ahead}, titles, description, "log")]


STUDY = Study(
    name="convergence",
    title="Is the gain the rate?",
    claim="Batch norm makes a network converge faster at any rate, not only by allowing larger ones.",
    who="Many tutorials after Ioffe & Szegedy 2015 (faster convergence without naming the rate); Bjorck et al. 2018 "
    "contradict: the gain is the larger rate.",
    experiment=f"A fully connected ReLU network of {DEPTH} layers of 64 units on real images, He's start, with and "
    "without normkit.BatchNorm1d before each activation, plain SGD with batches of 64 at five equal rates from 0.01 "
    "to 1; the same draws of the weights and the same batches.",
    parts=PARTS,
    paper="Bjorck et al. 2018, figure 1: at a rate of 0.0001 a ResNet with batch norm learns no faster than one "
    "without at that rate; all of the gain comes with larger rates. Ours: the right panel from left to right.",
    doubt="Under batch norm the rate is another unit: the weights' length sets the effective step. Adam would hide "
    "the difference at small rates. The last part is at its margin: the fresh seeds support it.",
    advice="Do not add batch norm and keep the old rate: raise the rate with it.",
    papers=("Bjorck et al. 2018, arXiv:1806.02375", "Ioffe & Szegedy 2015, arXiv:1502.03167"),
    seconds=(0.4, 0.8),
    plan=plan,
    run=run,
    plot=plot,
)
