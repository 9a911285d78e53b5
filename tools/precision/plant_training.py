"""The faults of training and deployment: NK4xx, NK5xx."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from normkit.doctor.examples import replicated

from .case import Case, Planted, after, here, plants
from .made import settle
from .parts import Checkpointed, Pair, Scaled, put


@plants("NK401")
def untracked(case: Case) -> Planted:
    case.norm.track_running_stats = False
    case.model.train()
    return here(case)


@plants("NK402")
def gradients_off(case: Case) -> Planted:
    case.norm.requires_grad_(False)
    case.model.train()
    return here(case)


@plants("NK403")
def decay(case: Case) -> Planted:
    return here(case, optimizer=torch.optim.SGD(case.model.train().parameters(), 0.1, weight_decay=1e-4))


@plants("NK404")
def moved_twice(case: Case) -> Planted:
    case.put(Checkpointed(case.norm, checkpoint))
    case.model.train()
    return here(case, ".body")


@plants("NK405")
def not_synchronised(case: Case) -> Planted:
    halves = [part for x in case.batches for part in x.split(8)]
    return Planted(replicated(case.model.train()), halves, case.layer)


@plants("NK406")
def gradients(case: Case) -> Planted:
    """Sixty layers in a chain before the net, on a quarter of its pixels."""
    channels = case.batches[0].shape[1]
    layers: list[nn.Module] = [nn.AvgPool2d(4)]
    for i in range(60):
        inputs = channels if i == 0 else 16
        layers += [nn.Conv2d(inputs, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(16, channels, 1), nn.Upsample(scale_factor=4), case.model)
    settle(model.eval(), case.net.settling())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.fill_(1000)  # type: ignore[union-attr]  # it tracks
    return Planted(model.train(), case.batches, "2")


@plants("NK407")
def effective_rate(case: Case) -> Planted:
    layer = case.model.get_submodule(case.feeder)
    with torch.no_grad():
        layer.weight.mul_(300)
    case.settle()
    return here(case, optimizer=torch.optim.SGD(case.model.train().parameters(), 0.1))


@plants("NK408")
def pair(case: Case) -> Planted:
    model = Pair(case.model)
    first = next(name for name, module in model.named_modules() if name.startswith("teacher.") and _is_batch(module))
    return Planted(model.train(), case.batches, first)


@plants("NK501")
def not_folded(case: Case) -> Planted:
    layer = case.model.get_submodule(case.feeder)
    put(case.model, case.feeder, nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels)))
    case.model.get_submodule(f"{case.feeder}.1").num_batches_tracked.fill_(1000)
    case.settle()
    return Planted(case.model, case.batches, "")


@plants("NK502")
def blocks_folding(case: Case) -> Planted:
    case.put(nn.Sequential(nn.ReLU(), case.norm))
    case.settle()
    return Planted(case.model, case.batches, "")


@plants("NK503")
def exported_in_training(case: Case) -> Planted:
    program = torch.export.export(case.model.train(), (case.batches[0],)).module()
    return Planted(program, None, case.layer)


@plants("NK504")
def scales(case: Case) -> Planted:
    with torch.no_grad():
        case.norm.weight[0] = 500 * case.norm.weight.abs().max()
    after(case, Scaled(case.channels))
    case.settle()
    return here(case, ".0")


@plants("NK505")
def swapped(case: Case) -> Planted:
    case.norm.eps = 30 * case.norm.eps
    return Planted(torch.export.export(case.model, (case.batches[0],)).module(), None, case.layer)


def _is_batch(module: nn.Module) -> bool:
    return isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))
