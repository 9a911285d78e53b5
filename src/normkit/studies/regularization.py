"""Does the noise of batch statistics regularize? Few images, small and large batches, and controls without the noise.

Layer norm standardizes without a batch. Frozen batch norm trains a quarter of the steps with batch statistics and the
rest under its running ones, which hold no noise. Dropout is what a regularizer does here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

import normkit as nk

from . import data, nets, training
from .rules import more_than
from .study import Params, Plot, Preset, Result, Run, Study
from .tuned import accuracy, fitted, tuned

IMAGES = 300  # few, so that there is something to overfit
DEPTH, SMALL, LARGE = 3, 8, 64
RATES = [0.03, 0.1, 0.3]
Self = TypeVar("Self", bound="Freezing")


class Freezing(nk.BatchNorm1d):
    """Batch norm that stays under its running statistics once `is_frozen` is set."""

    is_frozen = False

    def train(self: Self, mode: bool = True) -> Self:
        super().train(mode and not self.is_frozen)
        return self


# label -> (norm or what stands in its place, its place, batch)
ARMS: dict[str, tuple[Callable[[int], nn.Module] | None, nets.Place, int]] = {
    "none, 8": (None, "before", SMALL),
    "none, 64": (None, "before", LARGE),
    "batch norm, 8": (nk.BatchNorm1d, "before", SMALL),
    "batch norm, 64": (nk.BatchNorm1d, "before", LARGE),
    "frozen, 8": (Freezing, "before", SMALL),
    "layer norm, 8": (nk.LayerNorm, "before", SMALL),
    "dropout, 8": (lambda units: nn.Dropout(0.2), "after", SMALL),
}


def plan(preset: Preset) -> list[Params]:
    steps = 240 if preset.quick else 720
    return [
        {"arm": arm, "rate": rate, "batch": ARMS[arm][2], "steps": steps, "seed": seed, "data": preset.data}
        for seed in preset.seed_range()
        for arm in ARMS
        for rate in RATES
    ]


def run(params: Params) -> Result:
    """As tuned.fitted, and `trained`: the accuracy on the training images."""
    whole = data.load(params["data"], params["seed"])
    images = replace(whole, train_x=whole.train_x[:IMAGES], train_y=whole.train_y[:IMAGES])
    make, place, _ = ARMS[params["arm"]]
    torch.manual_seed(params["seed"])  # of dropout
    norm: nets.Norm = "batch" if make else "none"
    model = nets.deep_mlp(images, norm, "relu", DEPTH, params["seed"], place=place, make=make or nk.BatchNorm1d)

    def freeze(step: int) -> None:
        if step == params["steps"] // 4:
            for layer in model.modules():
                if isinstance(layer, Freezing):
                    layer.is_frozen = True
                    layer.eval()

    result = fitted(model, images, params, freeze)
    return {**result, "trained": 1 - training.test(model.eval(), images.train_x, images.train_y)[1]}


def gap(runs: Sequence[Run], arm: str) -> float:
    """Training minus test accuracy at the arm's own rate, % points."""
    found = tuned(runs, arm=arm).result
    return 100 * float(found["trained"] - found["accuracy"])


def lead(runs: Sequence[Run], arm: str, other: str) -> float:
    """Test accuracy of an arm minus another's, % points."""
    return accuracy(runs, arm=arm) - accuracy(runs, arm=other)


PARTS = (
    more_than("At batch 8 the gap between training and test accuracy is larger without BN", 1.0, "% points",
              "ten images in a thousand", lambda r: gap(r, "none, 8") - gap(r, "batch norm, 8")),
    more_than("At batch 8 BN ends ahead of none by more than at 64", 0.5, "% points", "the noise grows as it shrinks",
              lambda r: lead(r, "batch norm, 8", "none, 8") - lead(r, "batch norm, 64", "none, 64")),
    more_than("With its noise taken away BN is behind itself", 0.5, "% points", "then the noise did it",
              lambda r: lead(r, "batch norm, 8", "frozen, 8")),
    more_than("So is layer norm, which has none", 0.5, "% points", "then the noise did it",
              lambda r: lead(r, "batch norm, 8", "layer norm, 8")),
)  # fmt: skip


def plot(runs: Sequence[Run]) -> list[Plot]:
    from .comparison import compared

    arms = {"test": lambda r, arm: accuracy(r, arm=arm),
            "training": lambda r, arm: 100 * float(tuned(r, arm=arm).result["trained"])}  # fmt: skip
    apart = {"test": lambda r, arm: lead(r, arm, f"none, {ARMS[arm][2]}")}
    places = [arm.replace(", ", "\n").replace(" norm", "\nnorm") for arm in ARMS]
    back = dict(zip(places, ARMS, strict=True))
    description = (
        f"Left: accuracy of networks of {DEPTH} layers after training on {IMAGES} images, on test and on training "
        "images, by norm and batch (the number under it), each at the rate chosen on validation images; medians over "
        "seeds. Right: test "
        "accuracy minus that without a norm at the same batch, mean and 95 % interval."
    )

    def named(of: Callable[..., float]) -> Callable[..., float]:
        return lambda r, place: of(r, back[place])

    left, right = ({label: named(of) for label, of in each.items()} for each in (arms, apart))
    titles = ("Batch norm as a regularizer", "", "Ahead of no norm")
    return [compared("regularization", runs, places, left, right, titles, description, "words", "Accuracy")]


STUDY = Study(
    name="regularization",
    title="A little regularization",
    claim="The noise of batch statistics regularizes: batch norm overfits less, the more so the smaller the batch.",
    who="Ioffe & Szegedy 2015 (section 3.4: BN reduces or removes the need for dropout), and most tutorials since; Luo "
    "et al. 2019 derive it for one layer.",
    experiment=f"{DEPTH} ReLU layers of 64 units trained on {IMAGES} real images with batches of {SMALL} or {LARGE} "
    "for equal steps: no norm, normkit.BatchNorm1d, the same under its running statistics after a quarter of the "
    "steps, normkit.LayerNorm, and dropout of 0.2; plain SGD at three rates, of which validation images choose one "
    "for each. The same draws of the weights for all.",
    parts=PARTS,
    paper="Ioffe & Szegedy 2015 report that Inception without dropout generalizes as well once it has BN, and give no "
    "figure for the noise alone. Ours: the right panel, with the controls.",
    doubt="All networks fit their 300 images, so the gap of the first part is the test error in other words. Batch "
    "norm also changes which minimum is found at all, noise or not; equal steps at batch 64 see eight times the "
    "images of batch 8. Several norms chose the largest of the three rates.",
    advice="Do not count on batch norm to regularize; more data, augmentation, weight decay or dropout are made "
    "for it, and dropout, too, has to be tuned: 0.2 did not help here.",
    papers=("Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.4", "Luo et al. 2019, arXiv:1809.00846"),
    seconds=(0.35, 0.9),
    plan=plan,
    run=run,
    plot=plot,
)
