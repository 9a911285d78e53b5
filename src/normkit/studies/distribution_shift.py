"""Corrupted test images: batch norm with its training statistics, adapted to the test batch, and group norm.

Five corruptions at five severities of the real test images. Adaptation is `normkit.adapt`: test batches of several
sizes, the training statistics as a prior of N samples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normkit as nk

from . import data, nets, training
from .study import Params, Plot, Preset, Result, Run, Study
from .verdict import Verdict, combine, paired, paired_below

SEVERITIES = [0, 1, 2, 3, 4, 5]  # 0: the images as they are
TESTED = 500  # test images
BATCH, RATE = 32, 0.1
LARGE, SMALL = 250, 8  # images a test batch
# name -> (prior, images a test batch); an infinite prior is plain evaluation
VERSIONS: dict[str, tuple[float, int]] = {
    "source": (math.inf, LARGE),
    "adapted, large batch": (16, LARGE),
    "adapted, small batch": (16, SMALL),
    "small batch alone": (0, SMALL),
}
GROUP = "group norm"


def plan(preset: Preset) -> list[Params]:
    steps = 300 if preset.quick else 3000
    return [
        {"batch": BATCH, "steps": steps, "rate": RATE, "seed": seed, "data": preset.data}
        for seed in preset.seed_range()
    ]


def run(params: Params) -> Result:
    """error[version][severity]: share of wrong answers, averaged over the corruptions."""
    images = data.load(params["data"])
    batch_norm, group_norm = (_trained(images, norm, params) for norm in ("batch", "group"))
    y = images.test_y[:TESTED]
    errors: dict[str, list[float]] = {name: [] for name in (*VERSIONS, GROUP)}
    for severity in SEVERITIES:
        corrupted = _corrupted(images.test_x[:TESTED], severity, params["seed"])
        for name, (prior, batch) in VERSIONS.items():
            with nk.adapt(batch_norm, prior=prior):
                errors[name].append(_mean([_error(batch_norm, x, y, batch) for x in corrupted]))
        errors[GROUP].append(_mean([_error(group_norm, x, y, LARGE) for x in corrupted]))
    return {"error": errors}


def _trained(images: data.Images, norm: nets.Norm, params: Params) -> nn.Module:
    """Trained to rest; batch norm with exact statistics, so that only the shift is left to blame."""
    torch.manual_seed(params["seed"])
    model = nets.conv_net(images, norm)
    training.train(
        model, images, training.Plan(params["batch"], params["steps"], params["rate"], decay=True), params["seed"]
    )
    if norm == "batch":
        nk.recalibrate(model, images.train_x[:2000].split(500), distributed=False, progress=False)
    return copy.deepcopy(model).eval()


@torch.no_grad()
def _error(model: nn.Module, x: Tensor, y: Tensor, batch: int) -> float:
    wrong = 0
    for part_x, part_y in zip(x.split(batch), y.split(batch), strict=True):
        wrong += int((model(part_x).argmax(1) != part_y).sum())
    return wrong / len(y)


def _corrupted(x: Tensor, severity: int, seed: int) -> list[Tensor]:
    """x: (N, C, H, W) in units of the training set's deviation, under each corruption; itself at severity 0."""
    if severity == 0:
        return [x]
    generator = torch.Generator().manual_seed(100 * seed + severity)
    return [corrupt(x, severity, generator) for corrupt in CORRUPTIONS.values()]


def noise(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Gaussian noise of 0.25 to 1.25 deviations."""
    return x + 0.25 * severity * torch.randn(x.shape, generator=generator)


def contrast(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """All values drawn towards the darkest: 15 to 75 % of the contrast goes."""
    return x.amin() + (x - x.amin()) * (1 - 0.15 * severity)


def brightness(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """0.4 to 2 deviations more light."""
    return x + 0.4 * severity


def blur(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """A Gaussian of 0.5 to 2.5 pixels."""
    reach = torch.arange(-6, 7, dtype=x.dtype)
    kernel = torch.exp(-(reach**2) / (2 * (0.5 * severity) ** 2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
    padded = F.pad(x, (6, 6, 6, 6), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=x.shape[1]), kernel.transpose(2, 3), groups=x.shape[1])


def pixelate(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Fewer pixels: 1.5 to 3.5 of them become one, each way."""
    side = max(2, round(x.shape[-1] / (1 + 0.5 * severity)))
    return F.interpolate(F.adaptive_avg_pool2d(x, side), size=x.shape[-2:], mode="nearest")


CORRUPTIONS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    f.__name__: f for f in (noise, contrast, brightness, blur, pixelate)
}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def judge(runs: Sequence[Run]) -> Verdict:
    def shifted(name: str) -> list[float]:
        """Points, averaged over the severities from 1 on, one a seed."""
        return [100 * _mean(run.result["error"][name][1:]) for run in runs]

    def plain(name: str) -> list[float]:
        return [100 * run.result["error"][name][0] for run in runs]

    def minus(a: Sequence[float], b: Sequence[float]) -> list[float]:
        return [x - y for x, y in zip(a, b, strict=True)]

    source, large, small, alone = (shifted(name) for name in VERSIONS)
    return combine([
        paired("Under corruptions the source errs over 5 points more than adapted in large batches",
               minus(source, large), 5.0, "% points"),
        paired("In batches of 8 the prior helps: the batch's own statistics alone err more", minus(alone, small),
               0.0, "% points"),
        paired("Also in batches of 8 adapting with the prior beats the source", minus(source, small), 0.0,
               "% points"),
        paired_below("Without a corruption adapting in large batches costs less than 2 points",
                     minus(plain("adapted, large batch"), plain("source")), 2.0, "% points"),
        paired("Group norm, which has no statistics to be wrong, beats the source", minus(source, shifted(GROUP)),
               0.0, "% points"),
    ])  # fmt: skip


def plot(runs: Sequence[Run]) -> list[Plot]:
    from . import plots

    figure, (axis,) = plots.panels(1, height=3.9)
    labels = {
        "source": "batch norm, training statistics",
        "adapted, large batch": f"adapted, prior 16, batches of {LARGE}",
        "adapted, small batch": f"adapted, prior 16, batches of {SMALL}",
        "small batch alone": f"adapted, no prior, batches of {SMALL}",
        GROUP: GROUP,
    }
    for index, (name, label) in enumerate(labels.items()):
        groups = [[100 * run.result["error"][name][i] for run in runs] for i in range(len(SEVERITIES))]
        band = [min(group) for group in groups], [max(group) for group in groups]
        plots.line(axis, SEVERITIES, [plots.median(group) for group in groups], index, label, band)
    axis.set_ylim(0, 100)
    plots.dress(axis, "Test error, %", "severity of the corruption (mean over five corruptions)", "")
    plots.legend(axis, "upper left")
    description = (
        "Test error in per cent against the severity of the corruption, mean over noise, contrast, brightness, blur "
        "and pixelation; medians over seeds, shades from the best to the worst seed. Batch norm under its training "
        "statistics, adapted to large and to small test batches, and group norm."
    )
    return [plots.finish(figure, "distribution_shift", "Test error under corruptions", description)]


STUDY = Study(
    name="distribution_shift",
    title="When the test images differ",
    claim="Under a shift of the test images batch norm's training statistics are wrong; statistics of the test "
    "batch, mixed with them, repair much of it; small batches need the training statistics as a prior; group norm is "
    "the other way out.",
    experiment="The same network of three convolutions, once with normkit.BatchNorm2d and exact training statistics, "
    "once with normkit.GroupNorm, trained on real images; tested on the test images under five corruptions at five "
    f"severities: plainly, and with normkit.adapt in batches of {LARGE} and {SMALL} with a prior of 16 samples or "
    "none.",
    rule="Over seeds, averaged over corruptions and severities, in points of test error: the source errs over 5 points "
    f"more than adapted in batches of {LARGE}; in batches of {SMALL} no prior errs more than a prior of 16, and the "
    "source more than that too; without a corruption adapting costs less than 2 points; the source errs more than "
    "group norm.",
    papers=("Schneider et al. 2020, arXiv:2006.16971", "Li et al. 2017, arXiv:1603.04779"),
    seconds=(6.4, 21.0),
    plan=plan,
    run=run,
    judge=judge,
    plot=plot,
)
