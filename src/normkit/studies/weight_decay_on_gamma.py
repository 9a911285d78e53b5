"""Should weight decay reach the norms' gains and shifts? Few images, decay of everything and of the weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

import normkit as nk

from . import data, nets, training
from .rules import more_than, times
from .study import Params, Plot, Preset, Result, Run, Study, seeds_of
from .tuned import errors, tuned

IMAGES, BATCH = 500, 32  # few images, so that decay has something to do
DECAYS = [0.001, 0.004, 0.016]
RATES = [0.12, 0.5, 2.0]  # with momentum 0.9
LABELS = {"all": "all parameters", "weights": "weights alone", "none": "no decay"}


def plan(preset: Preset) -> list[Params]:
    steps = 90 if preset.quick else 600
    arms = [("none", 0.0), *((decayed, decay) for decayed in ("all", "weights") for decay in DECAYS)]
    return [
        {"decayed": decayed, "decay": decay, "rate": rate, "steps": steps, "seed": seed, "data": preset.data}
        for seed in preset.seed_range()
        for decayed, decay in arms
        for rate in RATES
    ]


def run(params: Params) -> Result:
    """error: on the test images; valid: what chooses rate and decay; gain: mean |gamma| at the end."""
    whole = data.load(params["data"], params["seed"])
    images = replace(whole, train_x=whole.train_x[:IMAGES], train_y=whole.train_y[:IMAGES])
    model = nets.conv_net(images, "batch", params["seed"])
    plan = training.Plan(BATCH, params["steps"], params["rate"], decay=True)
    training.train(model, images, plan, params["seed"], parameters=groups(model, params["decayed"], params["decay"]))
    gains = [layer.weight.detach() for layer in model.modules() if isinstance(layer, nk.BatchNorm2d)]
    return {**errors(model, images), "gain": float(torch.cat(gains).abs().mean())}


def groups(model: nn.Module, decayed: str, decay: float) -> list[dict[str, Any]]:
    """Parameters as an optimizer takes them: matrices and filters, and vectors (gains, shifts, biases) apart."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    return [
        {"params": weights, "weight_decay": decay},
        {"params": vectors, "weight_decay": decay if decayed == "all" else 0.0},
    ]


def best(runs: Sequence[Run], decayed: str) -> Result:
    """Of one seed's arm at its own rate and decay, no decay among them."""
    return tuned([run for run in runs if run.params["decayed"] in (decayed, "none")]).result


def error(runs: Sequence[Run], decayed: str, **fixed: Any) -> float:
    """Test error, %; of an arm at its own rate and decay, or at a fixed decay."""
    found = tuned(runs, decayed=decayed, **fixed).result if fixed else best(runs, decayed)
    return 100 * float(found["error"])


def _gains(runs: Sequence[Run]) -> float:
    alone, all_ = (tuned(runs, decayed=decayed, decay=DECAYS[-1]).result["gain"] for decayed in ("weights", "all"))
    return float(alone / all_)


PARTS = (
    more_than("Decay of the weights alone errs less than no decay", 0.5, "% points", "five images in a thousand; else "
              "there is nothing to tell apart", lambda r: error(r, "none") - error(r, "weights")),
    more_than("Decay of gains and shifts too errs more than of the weights alone", 0.5, "% points",
              "five images in a thousand", lambda r: error(r, "all") - error(r, "weights")),
    times(f"At a decay of {DECAYS[-1]} gains that are left out end larger", 1.1, "a tenth is seen in a histogram",
          _gains),
)  # fmt: skip


def plot(runs: Sequence[Run]) -> list[Plot]:
    from . import plots

    figure, axes = plots.panels(2, height=3.9)
    seeds = [[run for run in runs if run.params["seed"] == seed] for seed in seeds_of(runs)]
    for index, decayed in enumerate(("all", "weights")):
        found = [[error(of, decayed, decay=decay) for of in seeds] for decay in DECAYS]
        plots.median_line(axes[0], DECAYS, found, index, LABELS[decayed])
    none = plots.median([error(of, "none") for of in seeds])
    axes[0].axhline(none, **plots.REFERENCE)
    apart = [[error(of, "all", decay=d) - error(of, "weights", decay=d) for of in seeds] for d in DECAYS]
    plots.difference(axes[1], DECAYS, apart, 2, "all minus weights alone")
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xticks(DECAYS, [f"{decay:g}" for decay in DECAYS])
        axis.minorticks_off()
    plots.dress(axes[0], "Each at its own rate", "weight decay", "test error, %")
    plots.dress(axes[1], "The norm's parameters decayed too", "weight decay", "% points, paired")
    for axis in axes:
        plots.legend(axis, "below", 1)
    description = (
        "Left: test error in per cent against the weight decay, of all parameters and of the weights alone, each at "
        "the rate chosen on validation images; medians over seeds, shades from the best to the worst, dashed: no "
        "decay. Right: the first minus the second, mean and 95 % interval."
    )
    return [plots.finish(figure, "weight_decay_on_gamma", "Weight decay with and without the norm's parameters",
                         description)]  # fmt: skip


STUDY = Study(
    name="weight_decay_on_gamma",
    title="Weight decay on gamma and beta",
    claim="Weight decay should leave out the norms' gains and shifts (and the biases): networks generalize better so.",
    who="Jia et al. 2018 and He et al. 2019 (Bag of tricks, section 3.1: no bias decay); the training recipes of many "
    "libraries since.",
    experiment=f"A network of three convolutions with normkit.BatchNorm2d trained on {IMAGES} real images with batches "
    f"of {BATCH}, SGD with momentum 0.9 at rates of {RATES[0]} to {RATES[-1]} that fall to zero, without decay, and "
    f"with a decay of {DECAYS[0]} to {DECAYS[-1]} of all parameters or of the weights of convolutions and the last "
    "layer alone. Validation images choose rate and decay of each arm; the same draws for all.",
    parts=PARTS,
    paper="He et al. 2019, table 4 add it to a ResNet-50 that has their other tricks and see no gain: 76.2 % before "
    "and after on ImageNet at batch 256, a little less at 1024, one run each.",
    doubt="Far more images, where a network has less to overfit. The biases of the last layer are left out together "
    "with the norms' gains and shifts, so the share of each is not told apart.",
    advice="Put the norms' gains and shifts and the biases into a group of their own without decay, then tune the "
    "decay of the weights with the rate.",
    papers=("Jia et al. 2018, arXiv:1807.11205", "He et al. 2019, arXiv:1812.01187, section 3.1",
            "van Laarhoven 2017, arXiv:1706.05350"),
    seconds=(0.4, 1.7),
    plan=plan,
    run=run,
    plot=plot,
)  # fmt: skip
