"""Faults by size: from which size on is each rule's fault named? GRADES, one for each rule that has sizes.

The others are all or nothing: a layer that never moved, a NaN, a bias, a mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .case import Case, Planted, after, here
from .made import settle
from .parts import Shared

Sized = Callable[[Case, float], Planted]


@dataclass(frozen=True)
class Grade:
    """code: the rule. unit: of the sizes, as "running_var times". sizes: from large to small. plant: in a case."""

    code: str
    unit: str
    sizes: tuple[float, ...]
    plant: Sized

    @property
    def name(self) -> str:
        return f"{self.code} {self.unit}"


def _variance(case: Case, size: float) -> Planted:
    case.norm.running_var.mul_(size)
    return here(case)


def _mean(case: Case, size: float) -> Planted:
    case.norm.running_mean.add_(size * (case.norm.running_var + case.norm.eps).sqrt())
    return here(case)


def _one_channel(case: Case, size: float) -> Planted:
    case.norm.running_var[case.channels // 2] *= size
    return here(case)


def _left(case: Case, size: float) -> Planted:
    norm, steps = case.norm, 200
    norm.momentum = 1 - size ** (1 / steps)
    norm.num_batches_tracked.fill_(steps)
    norm.running_mean.mul_(1 - size)
    norm.running_var.mul_(1 - size).add_(size)
    return here(case)


def _momentum(case: Case, size: float) -> Planted:
    case.norm.momentum = size
    return here(case)


def _eps(case: Case, size: float) -> Planted:
    case.norm.eps = size * case.norm.eps
    return here(case)


def _negative(case: Case, size: float) -> Planted:
    case.norm.running_var[1] = -size
    return here(case)


def _counter(case: Case, size: float) -> Planted:
    case.norm.num_batches_tracked.add_(int(size))
    return here(case)


def _shared(case: Case, size: float) -> Planted:
    case.put(Shared(case.norm, size))
    case.settle()
    return here(case, ".norm")


def _padding(case: Case, size: float) -> Planted:
    """`size` of all positions on average, from none to twice as many."""
    settle(case.model, [_padded(x, size) for x in case.net.settling()])
    return Planted(case.model, [_padded(x, size) for x in case.batches], case.layer)


def _padded(x: Tensor, share: float) -> Tensor:
    widths = torch.linspace(1.0, 1 - 2 * share, len(x)).mul(x.shape[-1]).round().long()
    kept = torch.arange(x.shape[-1]) < widths.unsqueeze(1)
    return x * kept[:, None, None, :]


def _origin(case: Case, size: float) -> Planted:
    state = case.model.state_dict()
    averaged = {k: value * (1 - size) if k.endswith(("weight", "bias")) else value for k, value in state.items()}
    return Planted({"model": state, "ema": averaged}, None, f"ema: {case.layer}")


def _dropout(case: Case, size: float) -> Planted:
    case.put(nn.Sequential(nn.Dropout(size), case.norm))
    return here(case, ".1")


def _dead(case: Case, size: float) -> Planted:
    with torch.no_grad():
        case.norm.weight[: max(1, int(size * case.channels))] = 0
    case.settle()
    return here(case)


def _saturated(case: Case, size: float) -> Planted:
    after(case, nn.Tanh())
    with torch.no_grad():
        case.norm[0].weight.fill_(size)
        case.norm[0].bias.fill_(size / 2)
    case.settle()
    return here(case, ".0")


def _large_mean(case: Case, size: float) -> Planted:
    layer = case.model.get_submodule(case.feeder)
    layer.bias = nn.Parameter(torch.full((layer.weight.shape[0],), size * float(case.norm.running_var.sqrt().max())))
    case.settle()
    return Planted(case.model.bfloat16(), [x.bfloat16() for x in case.batches], case.layer)


def _decay(case: Case, size: float) -> Planted:
    return here(case, optimizer=torch.optim.SGD(case.model.train().parameters(), 0.1, weight_decay=size))


def _rate(case: Case, size: float) -> Planted:
    with torch.no_grad():
        case.model.get_submodule(case.feeder).weight.mul_(size**0.5)
    case.settle()
    return here(case, optimizer=torch.optim.SGD(case.model.train().parameters(), 0.1))


def _folded(case: Case, size: float) -> Planted:
    with torch.no_grad():
        scales = case.norm.weight.abs() / (case.norm.running_var + case.norm.eps).sqrt()
        case.norm.weight[0] *= size * scales.median() / scales[0]
    return Planted(case.model, None, case.layer)


def _values(case: Case, size: float) -> Planted:
    """Batches of `size` rows: as many values per channel."""
    rows = torch.cat(case.batches)
    return Planted(case.model.train(), list(rows.split(int(size))[:16]), case.layer)


GRADES = (
    Grade("NK103", "running_var times", (14, 4, 2, 1.5, 1.25, 1.1), _variance),
    Grade("NK103", "running_mean off, deviations", (1, 0.5, 0.25, 0.12, 0.06), _mean),
    Grade("NK103", "running_var of one channel times", (100, 14, 6, 3), _one_channel),
    Grade("NK104", "share of the start left", (0.8, 0.4, 0.2, 0.1, 0.06), _left),
    Grade("NK105", "momentum", (0.99, 0.95, 0.9, 0.8), _momentum),
    Grade("NK106", "eps times", (30, 10, 3, 1.5, 1.01), _eps),
    Grade("NK107", "running_var of one channel below 0 by", (0.25, 1e-3, 1e-6, 1e-30), _negative),
    Grade("NK109", "batches more than the others", (2000, 100, 1), _counter),
    Grade("NK110", "inputs unlike by a factor of 1 +", (2, 1, 0.5, 0.25), _shared),
    Grade("NK111", "share of padding", (0.4, 0.2, 0.1, 0.05), _padding),
    Grade("NK112", "weights off by", (0.03, 1e-3, 1e-5), _origin),
    Grade("NK203", "p", (0.5, 0.1, 0.01), _dropout),
    Grade("NK206", "values per channel, at most", (2, 4, 8, 15), _values),
    Grade("NK301", "share of the channels, one at least", (0.25, 0.1, 0.0), _dead),
    Grade("NK302", "gamma", (20, 10, 5, 3), _saturated),
    Grade("NK303", "mean over deviation, bfloat16", (60, 30, 15, 8), _large_mean),
    Grade("NK403", "weight decay", (1e-2, 1e-4, 1e-8), _decay),
    Grade("NK407", "rate off by a factor of", (90000, 1600, 900), _rate),
    Grade("NK504", "largest over median scale", (500, 150, 90), _folded),
)
BY_NAME = {grade.name: grade for grade in GRADES}
