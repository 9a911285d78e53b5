"""The running statistics are far from the data's.

What it checks: the exact mean and variance of each layer's inputs over the batches given, against its running ones,
in units of sqrt(running_var + eps): d = sqrt((mean - mean_data)^2 + (std - std_data)^2) / std, per channel; the root
mean square over the channels above 0.1, or one channel above 0.5, beyond what the number of images can tell. Where no
layer is surely off, whether all of them together move the answer by more than batches differ: then the model itself
is named.

Why: evaluation normalizes by the running values; d is what the next layer feels, in standard deviations. That is an
error where the answer moves by more than the layer's statistics of single batches move it (twice that, and 0.05 of
its own standard deviation; of batches of 32 images, whatever the loader's are), with all other layers at their exact
statistics, so that an earlier layer's fault is not blamed on it.

Ignore it: where the batches given are not the data that the model is for. Layers that are frozen or in eval mode
inside a training model are not measured: they stand still on purpose.

Sources: Wu & Johnson 2021, https://arxiv.org/abs/2105.07576; Singh & Shrivastava 2019 (EvalNorm),
https://arxiv.org/abs/1904.06031; pytorch#4741, pytorch#100048
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..evidence import Evidence
from ..examples import Example, images, small_net
from ..finding import Finding, make
from ..forward import SCREEN, UNIT, NormRun

CODE, WHERE = "NK103", "4"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        run = evidence.measured(norm)
        if run is None or not run.far or norm.mean is None or norm.var is None:
            continue
        yield make(
            CODE,
            norm.where,
            evidence.severity(norm),
            _cause(norm.mean, norm.var, run),
            f"nk.recalibrate(model, batches, only={norm.name!r})",
            measured=run.apart,
            limit=SCREEN,
            unit=UNIT,
        )
    whole = evidence.forward
    if whole is not None and whole.together and whole.change is not None:
        yield make(
            CODE,
            "",
            "note" if evidence.untrained else "error",
            "no layer is surely off by itself, and all running statistics together move the answer by "
            f"{whole.change:.2g} of its deviation, where single batches move it by {whole.noise:.2g}: as statistics of "
            "a few images do",
            "nk.recalibrate(model, batches), with more images",
            measured=whole.change,
            limit=whole.noise,
            unit="of the answer's deviation",
        )


def _cause(mean: Tensor, var: Tensor, run: NormRun) -> str:
    """Which channel is farthest off and by what; how the answer feels it."""
    assert run.mean is not None
    assert run.var is not None
    channel = run.worst
    own_mean, own_var, data_mean, data_var = (float(t[channel]) for t in (mean, var, run.mean, run.var))
    ratio = float((var / run.var).nan_to_num(posinf=float("inf")).median())
    what = f"channel {channel}: running {own_mean:.3g}, {own_var:.3g}, the data's {data_mean:.3g}, {data_var:.3g}"
    times = f"running_var is {ratio:.2g} times the data's (median); " if not 0.8 < ratio < 1.25 else ""
    felt = "" if run.change is None else f"; alone it moves the answer by {run.change:.2g} of its deviation"
    return f"{times}{what} (mean, variance){felt}"


def sick() -> Example:
    model = small_net()
    model[4].running_var.mul_(14)
    return model, images()


def healthy() -> Example:
    return small_net(), images()
