"""How the fault of each rule is planted in a healthy net: PLANTERS, code -> Case -> Planted.

A planter changes the case's model, or gives another one in its place; `where` is the layer that the doctor must name.
What changes the structure settles the statistics anew, so that the fault planted is the only one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from normkit.doctor.examples import replicated

from .nets import Batches, Net, settle
from .parts import Checkpointed, Pair, Scaled, Shared, put
from .sources import SETTLING


@dataclass
class Case:
    """A healthy model that may be changed, and the batches that the doctor gets; layer: where to plant."""

    net: Net
    model: Any
    batches: Batches
    layer: str = ""
    feeder: str = ""  # the convolution or linear layer before it

    @property
    def norm(self) -> Any:
        return self.model.get_submodule(self.layer)

    @property
    def channels(self) -> int:
        return int(self.norm.num_features)

    def settle(self) -> None:
        assert self.net.data is not None
        settle(self.model.eval(), self.net.data(1, SETTLING))

    def put(self, module: nn.Module) -> None:
        put(self.model, self.layer, module)


@dataclass(frozen=True)
class Planted:
    """What the doctor is given, and the layer that it must name."""

    model: Any
    batches: Any
    where: str
    options: dict[str, Any] = field(default_factory=dict)


Planter = Callable[[Case], Planted]
PLANTERS: dict[str, Planter] = {}


def _plants(code: str) -> Callable[[Planter], Planter]:
    def keep(planter: Planter) -> Planter:
        PLANTERS[code] = planter
        return planter

    return keep


def here(case: Case, below: str = "", **options: Any) -> Planted:
    return Planted(case.model, case.batches, f"{case.layer}{below}", options)


def after(case: Case, *modules: nn.Module) -> None:
    """Put modules behind the layer; it is called `.0` then."""
    case.put(nn.Sequential(case.norm, *modules))


@_plants("NK001")
def raises(case: Case) -> Planted:
    wide = [torch.cat([x, x[:, :1]], 1) for x in case.batches]  # one channel more than the net takes
    return Planted(case.model, wide, "")


@_plants("NK101")
def never_moved(case: Case) -> Planted:
    case.norm.reset_running_stats()
    return here(case)


@_plants("NK102")
def moved_early(case: Case) -> Planted:
    fresh = case.net.make()
    for module in fresh.modules():
        if hasattr(module, "running_var"):
            module.reset_parameters()  # type: ignore[operator]  # a norm
    case.model = fresh.train()
    with torch.no_grad():
        case.model(torch.zeros_like(case.batches[0]))
    return here(case)


@_plants("NK103")
def far(case: Case) -> Planted:
    case.norm.running_var.mul_(14)
    case.norm.running_mean.add_(case.norm.running_var.sqrt() / 2)
    return here(case)


@_plants("NK104")
def lagging(case: Case) -> Planted:
    norm, left = case.norm, 0.999**200
    norm.momentum = 0.001
    norm.num_batches_tracked.fill_(200)
    norm.running_mean.mul_(1 - left)
    norm.running_var.mul_(1 - left).add_(left)
    return here(case)


@_plants("NK105")
def direction(case: Case) -> Planted:
    case.norm.momentum = 0.99
    return here(case)


@_plants("NK106")
def eps(case: Case) -> Planted:
    case.norm.eps = 30 * case.norm.eps
    return here(case)


@_plants("NK107")
def negative(case: Case) -> Planted:
    case.norm.running_var[1] = -0.25
    return here(case)


@_plants("NK108")
def not_finite(case: Case) -> Planted:
    case.norm.running_var[1] = float("nan")
    return here(case)


@_plants("NK109")
def counters(case: Case) -> Planted:
    case.norm.num_batches_tracked.mul_(3).add_(7)
    return here(case)


@_plants("NK110")
def shared(case: Case) -> Planted:
    case.put(Shared(case.norm))
    case.settle()
    return here(case, ".norm")


@_plants("NK111")
def padding(case: Case) -> Planted:
    """Images of unlike widths, filled up with zeros; the statistics are theirs."""
    assert case.net.data is not None
    given = [_padded(x) for x in case.net.data(1, SETTLING)]
    settle(case.model, given)
    return Planted(case.model, [_padded(x) for x in case.batches], case.layer)


def _padded(x: Tensor) -> Tensor:
    widths = torch.linspace(0.3, 0.8, len(x)).mul(x.shape[-1]).long()
    kept = torch.arange(x.shape[-1]) < widths.unsqueeze(1)
    return x * kept[:, None, None, :]


@_plants("NK112")
def origin(case: Case) -> Planted:
    state = case.model.state_dict()
    averaged = {key: value * 0.97 if key.endswith(("weight", "bias")) else value for key, value in state.items()}
    return Planted({"model": state, "ema": averaged}, None, f"ema: {case.layer}")


@_plants("NK113")
def few_images(case: Case) -> Planted:
    return Planted(case.model, [case.batches[0][:8]], "")


@_plants("NK201")
def bias(case: Case) -> Planted:
    layer = case.model.get_submodule(case.feeder)
    outputs = layer.weight.shape[0]
    layer.bias = nn.Parameter(torch.linspace(-0.1, 0.1, outputs))
    case.settle()
    return here(case)


@_plants("NK202")
def two_in_a_row(case: Case) -> Planted:
    after(case, _twin(case.norm))
    case.settle()
    return here(case, ".1")


@_plants("NK203")
def dropout(case: Case) -> Planted:
    case.put(nn.Sequential(nn.Dropout(0.5), case.norm))
    return here(case, ".1")


@_plants("NK204")
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


@_plants("NK205")
def one_channel(case: Case) -> Planted:
    case.put(nn.GroupNorm(case.channels, case.channels))
    case.settle()
    return here(case)


@_plants("NK206")
def few_values(case: Case) -> Planted:
    return Planted(case.model.train(), [part for x in case.batches for part in x.split(2)], case.layer)


@_plants("NK207")
def mode(case: Case) -> Planted:
    case.norm.train()
    return here(case)


@_plants("NK208")
def output(case: Case) -> Planted:
    name = [n for n, m in case.model.named_modules() if isinstance(m, nn.Linear)][-1]
    head = case.model.get_submodule(name)
    put(case.model, name, nn.Sequential(head, nn.BatchNorm1d(head.out_features, eps=case.norm.eps)))
    case.model.eval().get_submodule(f"{name}.1").num_batches_tracked.fill_(1000)
    case.settle()
    return Planted(case.model, case.batches, f"{name}.1")


@_plants("NK301")
def dead(case: Case) -> Planted:
    with torch.no_grad():
        case.norm.weight[: max(1, case.channels // 4)] = 0
    case.settle()
    return here(case)


@_plants("NK302")
def saturated(case: Case) -> Planted:
    after(case, nn.Sigmoid())
    with torch.no_grad():
        case.norm[0].weight.fill_(20)
        case.norm[0].bias.fill_(10)  # the larger part is positive: some classes have a ReLU of their own
    case.settle()
    return here(case, ".0")


@_plants("NK303")
def large_mean(case: Case) -> Planted:
    layer = case.model.get_submodule(case.feeder)
    layer.bias = nn.Parameter(torch.full((layer.weight.shape[0],), 60.0 * float(case.norm.running_var.sqrt().max())))
    case.settle()
    return Planted(case.model.bfloat16(), [x.bfloat16() for x in case.batches], case.layer)


@_plants("NK304")
def half(case: Case) -> Planted:
    case.norm.to(torch.bfloat16)
    return Planted(case.model.train(), None, case.layer)


@_plants("NK305")
def overflow(case: Case) -> Planted:
    """Inputs in their hundreds, in float16, with a norm first that keeps its statistics wide."""
    first = nn.BatchNorm2d(case.batches[0].shape[1], eps=case.norm.eps)
    first.num_batches_tracked.fill_(1000)
    model = nn.Sequential(first, case.model).eval()
    assert case.net.data is not None
    settle(model, [x * 500 for x in case.net.data(1, SETTLING)])
    return Planted(nn.Sequential(first, case.model.half()), [(x * 500).half() for x in case.batches], "0")


@_plants("NK306")
def infinite_input(case: Case) -> Planted:
    spoiled = [x.clone() for x in case.batches]
    spoiled[2].view(-1)[0] = float("inf")
    return Planted(case.model, spoiled, case.layer)


@_plants("NK401")
def untracked(case: Case) -> Planted:
    case.norm.track_running_stats = False
    case.model.train()
    return here(case)


@_plants("NK402")
def gradients_off(case: Case) -> Planted:
    case.norm.requires_grad_(False)
    case.model.train()
    return here(case)


@_plants("NK403")
def decay(case: Case) -> Planted:
    return here(case, optimizer=torch.optim.SGD(case.model.train().parameters(), 0.1, weight_decay=1e-4))


@_plants("NK404")
def moved_twice(case: Case) -> Planted:
    case.put(Checkpointed(case.norm, checkpoint))
    case.model.train()
    return here(case, ".body")


@_plants("NK405")
def not_synchronised(case: Case) -> Planted:
    halves = [part for x in case.batches for part in x.split(8)]
    return Planted(replicated(case.model.train()), halves, case.layer)


@_plants("NK406")
def gradients(case: Case) -> Planted:
    """Sixty layers in a chain before the net, on a quarter of its pixels."""
    channels = case.batches[0].shape[1]
    layers: list[nn.Module] = [nn.AvgPool2d(4)]
    for i in range(60):
        inputs = channels if i == 0 else 16
        layers += [nn.Conv2d(inputs, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(16, channels, 1), nn.Upsample(scale_factor=4), case.model)
    assert case.net.data is not None
    settle(model.eval(), case.net.data(1, SETTLING))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.fill_(1000)  # type: ignore[union-attr]  # it tracks
    return Planted(model.train(), case.batches, "2")


@_plants("NK407")
def effective_rate(case: Case) -> Planted:
    layer = case.model.get_submodule(case.feeder)
    with torch.no_grad():
        layer.weight.mul_(300)
    case.settle()
    return here(case, optimizer=torch.optim.SGD(case.model.train().parameters(), 0.1))


@_plants("NK408")
def pair(case: Case) -> Planted:
    model = Pair(case.model)
    first = next(name for name, module in model.named_modules() if name.startswith("teacher.") and _is_batch(module))
    return Planted(model.train(), case.batches, first)


@_plants("NK501")
def not_folded(case: Case) -> Planted:
    layer = case.model.get_submodule(case.feeder)
    put(case.model, case.feeder, nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels)))
    case.model.get_submodule(f"{case.feeder}.1").num_batches_tracked.fill_(1000)
    case.settle()
    return Planted(case.model, case.batches, "")


@_plants("NK502")
def blocks_folding(case: Case) -> Planted:
    case.put(nn.Sequential(nn.ReLU(), case.norm))
    case.settle()
    return Planted(case.model, case.batches, "")


@_plants("NK503")
def exported_in_training(case: Case) -> Planted:
    program = torch.export.export(case.model.train(), (case.batches[0],)).module()
    return Planted(program, None, case.layer)


@_plants("NK505")
def swapped(case: Case) -> Planted:
    case.norm.eps = 30 * case.norm.eps
    return Planted(torch.export.export(case.model, (case.batches[0],)).module(), None, case.layer)


@_plants("NK504")
def scales(case: Case) -> Planted:
    with torch.no_grad():
        case.norm.weight[0] = 500 * case.norm.weight.abs().max()
    after(case, Scaled(case.channels))
    case.settle()
    return here(case, ".0")


def _is_batch(module: nn.Module) -> bool:
    return isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))


def _twin(norm: nn.Module) -> nn.Module:
    twin = type(norm)(norm.num_features, eps=norm.eps)  # type: ignore[call-arg]  # a batch norm
    twin.num_batches_tracked.fill_(1000)  # type: ignore[union-attr]  # it tracks
    return twin.eval()
