"""The faults of placement and of numerics: NK2xx, NK3xx."""

from __future__ import annotations

import torch
from torch import nn

from .case import Case, Planted, after, here, plants
from .made import settle
from .parts import put


@plants("NK201")
def bias(case: Case) -> Planted:
    layer = case.model.get_submodule(case.feeder)
    outputs = layer.weight.shape[0]
    layer.bias = nn.Parameter(torch.linspace(-0.1, 0.1, outputs))
    case.settle()
    return here(case)


@plants("NK202")
def two_in_a_row(case: Case) -> Planted:
    after(case, _twin(case.norm))
    case.settle()
    return here(case, ".1")


@plants("NK203")
def dropout(case: Case) -> Planted:
    case.put(nn.Sequential(nn.Dropout(0.5), case.norm))
    return here(case, ".1")


@plants("NK204")
def one_by_one(case: Case) -> Planted:
    name = next(n for n, m in case.model.named_modules() if isinstance(m, nn.AdaptiveAvgPool2d))
    pool = case.model.get_submodule(name)
    pool.output_size = 1
    put(case.model, name, nn.Sequential(pool, nn.LazyBatchNorm2d()))
    with torch.no_grad():
        case.model(case.batches[0])
    case.model.get_submodule(f"{name}.1").num_batches_tracked.fill_(1000)
    case.settle()
    return Planted(case.model, case.batches, f"{name}.1")


@plants("NK205")
def one_channel(case: Case) -> Planted:
    case.put(nn.GroupNorm(case.channels, case.channels))
    case.settle()
    return here(case)


@plants("NK206")
def few_values(case: Case) -> Planted:
    return Planted(case.model.train(), [part for x in case.batches for part in x.split(2)], case.layer)


@plants("NK207")
def mode(case: Case) -> Planted:
    case.norm.train()
    return here(case)


@plants("NK208")
def output(case: Case) -> Planted:
    name = [n for n, m in case.model.named_modules() if isinstance(m, nn.Linear)][-1]
    head = case.model.get_submodule(name)
    put(case.model, name, nn.Sequential(head, nn.BatchNorm1d(head.out_features, eps=case.norm.eps)))
    case.model.eval().get_submodule(f"{name}.1").num_batches_tracked.fill_(1000)
    case.settle()
    return Planted(case.model, case.batches, f"{name}.1")


@plants("NK301")
def dead(case: Case) -> Planted:
    with torch.no_grad():
        case.norm.weight[: max(1, case.channels // 4)] = 0
    case.settle()
    return here(case)


@plants("NK302")
def saturated(case: Case) -> Planted:
    after(case, nn.Sigmoid())
    with torch.no_grad():
        case.norm[0].weight.fill_(20)
        case.norm[0].bias.fill_(10)  # the larger part is positive: some classes have a ReLU of their own
    case.settle()
    return here(case, ".0")


@plants("NK303")
def large_mean(case: Case) -> Planted:
    layer = case.model.get_submodule(case.feeder)
    layer.bias = nn.Parameter(torch.full((layer.weight.shape[0],), 60.0 * float(case.norm.running_var.sqrt().max())))
    case.settle()
    return Planted(case.model.bfloat16(), [x.bfloat16() for x in case.batches], case.layer)


@plants("NK304")
def half(case: Case) -> Planted:
    case.norm.to(torch.bfloat16)
    return Planted(case.model.train(), None, case.layer)


@plants("NK305")
def overflow(case: Case) -> Planted:
    """Inputs in their hundreds, in float16, with a norm first that keeps its statistics wide."""
    first = nn.BatchNorm2d(case.batches[0].shape[1], eps=case.norm.eps)
    first.num_batches_tracked.fill_(1000)
    model = nn.Sequential(first, case.model).eval()
    settle(model, [x * 500 for x in case.net.settling()])
    return Planted(nn.Sequential(first, case.model.half()), [(x * 500).half() for x in case.batches], "0")


@plants("NK306")
def infinite_input(case: Case) -> Planted:
    spoiled = [x.clone() for x in case.batches]
    spoiled[2].view(-1)[0] = float("inf")
    return Planted(case.model, spoiled, case.layer)


def _twin(norm: nn.Module) -> nn.Module:
    twin = type(norm)(norm.num_features, eps=norm.eps)  # type: ignore[call-arg]  # a batch norm
    twin.num_batches_tracked.fill_(1000)  # type: ignore[union-attr]  # it tracks
    return twin.eval()
