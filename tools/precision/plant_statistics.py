"""The faults of the run and of statistics: NK0xx, NK1xx."""

from __future__ import annotations

import torch
from torch import Tensor

from .case import Case, Planted, here, plants
from .made import settle
from .parts import Shared


@plants("NK001")
def raises(case: Case) -> Planted:
    wide = [torch.cat([x, x[:, :1]], 1) for x in case.batches]  # one channel more than the net takes
    return Planted(case.model, wide, "")


@plants("NK101")
def never_moved(case: Case) -> Planted:
    case.norm.reset_running_stats()
    return here(case)


@plants("NK102")
def moved_early(case: Case) -> Planted:
    fresh = case.net.make()
    for module in fresh.modules():
        if hasattr(module, "running_var"):
            module.reset_parameters()  # type: ignore[operator]  # a norm
    case.model = fresh.train()
    with torch.no_grad():
        case.model(torch.zeros_like(case.batches[0]))
    return here(case)


@plants("NK103")
def far(case: Case) -> Planted:
    case.norm.running_var.mul_(14)
    case.norm.running_mean.add_(case.norm.running_var.sqrt() / 2)
    return here(case)


@plants("NK104")
def lagging(case: Case) -> Planted:
    norm, left = case.norm, 0.999**200
    norm.momentum = 0.001
    norm.num_batches_tracked.fill_(200)
    norm.running_mean.mul_(1 - left)
    norm.running_var.mul_(1 - left).add_(left)
    return here(case)


@plants("NK105")
def direction(case: Case) -> Planted:
    case.norm.momentum = 0.99
    return here(case)


@plants("NK106")
def eps(case: Case) -> Planted:
    case.norm.eps = 30 * case.norm.eps
    return here(case)


@plants("NK107")
def negative(case: Case) -> Planted:
    case.norm.running_var[1] = -0.25
    return here(case)


@plants("NK108")
def not_finite(case: Case) -> Planted:
    case.norm.running_var[1] = float("nan")
    return here(case)


@plants("NK109")
def counters(case: Case) -> Planted:
    case.norm.num_batches_tracked.mul_(3).add_(7)
    return here(case)


@plants("NK110")
def shared(case: Case) -> Planted:
    case.put(Shared(case.norm))
    case.settle()
    return here(case, ".norm")


@plants("NK111")
def padding(case: Case) -> Planted:
    """Images of unlike widths, filled up with zeros; the statistics are theirs."""
    given = [_padded(x) for x in case.net.settling()]
    settle(case.model, given)
    return Planted(case.model, [_padded(x) for x in case.batches], case.layer)


def _padded(x: Tensor) -> Tensor:
    widths = torch.linspace(0.3, 0.8, len(x)).mul(x.shape[-1]).long()
    kept = torch.arange(x.shape[-1]) < widths.unsqueeze(1)
    return x * kept[:, None, None, :]


@plants("NK112")
def origin(case: Case) -> Planted:
    state = case.model.state_dict()
    averaged = {key: value * 0.97 if key.endswith(("weight", "bias")) else value for key, value in state.items()}
    return Planted({"model": state, "ema": averaged}, None, f"ema: {case.layer}")


@plants("NK113")
def few_images(case: Case) -> Planted:
    return Planted(case.model, [case.batches[0][:8]], "")
