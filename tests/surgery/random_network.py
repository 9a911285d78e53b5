"""Random networks: module graphs with convolutions, norms, activations, additions, branches, shared modules.

A network is a list of steps that a model interprets, so a failing example prints as data. Every tensor has three
samples and at least four positions a channel, so that statistics are well conditioned and float64 tolerances hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from normkit._torch import make_norm

from .models import randomized

CHANNELS = (2, 4, 6)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
ACTIVATIONS = (nn.ReLU, nn.SiLU, nn.Hardswish, nn.Tanh)
FUNCTIONS = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu, "abs": torch.abs}


@dataclass(frozen=True)
class Step:
    """One operation on the tensor `source` (a position in the list of tensors so far), and what it is made with."""

    op: str
    source: int
    options: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Network:
    spatial: int
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    seed: int

    def example_input(self) -> Tensor:
        random = torch.Generator().manual_seed(self.seed)
        return torch.randn(3, CHANNELS[1], *[6] * self.spatial, generator=random, dtype=torch.float64)

    def build(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return randomized(Interpreter(self), self.seed).double()


class Interpreter(nn.Module):
    """Runs the steps. Modules of equal steps are their own; "again" calls an earlier one once more."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.steps, self.chosen = network.steps, network.outputs
        self.shared = nn.ReLU()
        made = [_module(step, network.spatial) for step in network.steps]
        self.made = nn.ModuleDict({str(i): module for i, module in enumerate(made) if module is not None})

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        tensors = [x]
        for index, step in enumerate(self.steps):
            tensors.append(self.step(index, step, tensors))
        return tuple(tensors[i] for i in self.chosen)

    def step(self, index: int, step: Step, tensors: list[Tensor]) -> Tensor:
        y = tensors[step.source]
        if step.op == "function":
            return FUNCTIONS[str(step.options[0])](y)
        if step.op == "shared":
            return self.shared(y)
        if step.op == "add":
            return y + tensors[step.options[0]]
        if step.op == "cat":
            return torch.cat([y, tensors[step.options[0]]], 1)
        if step.op == "again":
            return self.made[str(step.options[0])](y)
        if step.op == "pad":
            return F.pad(y, [1, 1])
        if step.op == "view":
            return y.flatten(2).view(y.shape)
        return self.made[str(index)](y)


def _module(step: Step, spatial: int) -> nn.Module | None:
    d, o = spatial - 1, step.options
    if step.op == "conv":
        channels, out, kernel, padding, groups, bias, mode = o
        return CONVS[d](channels, out, kernel, padding=padding, groups=groups, bias=bias, padding_mode=mode)
    if step.op == "transposed":
        channels, out, groups, bias = o
        return TRANSPOSED[d](channels, out, 1, groups=groups, bias=bias)
    if step.op == "batch":
        channels, affine, bias, momentum = o
        return make_norm(BATCH[d], channels, affine=affine, bias=bias, momentum=momentum)
    if step.op == "group":
        return nn.GroupNorm(2, o[0])
    if step.op == "instance":
        return INSTANCE[d](o[0], affine=True, track_running_stats=o[1])
    if step.op == "activation":
        return ACTIVATIONS[o[0]]()
    if step.op == "pool":
        return POOLS[d](3, stride=1, padding=1)
    if step.op == "sequential":
        return nn.Sequential(CONVS[d](o[0], o[0], 1, bias=False), BATCH[d](o[0]), nn.ReLU(inplace=True))
    return {"identity": nn.Identity, "dropout": nn.Dropout}[step.op]() if step.op in ("identity", "dropout") else None


@st.composite
def networks(draw: st.DrawFn) -> Network:
    spatial = draw(st.sampled_from((1, 2, 2, 2, 3)))
    shapes = [(CHANNELS[1], (6,) * spatial)]  # of the tensors so far
    steps: list[Step] = []
    for _ in range(draw(st.integers(3, 9))):
        step, shape = _draw_step(draw, steps, shapes, spatial)
        steps.append(step)
        shapes.append(shape)
    last = len(shapes) - 1
    others = draw(st.lists(st.integers(1, last), max_size=1))
    return Network(spatial, tuple(steps), tuple(dict.fromkeys([last, *others])), draw(st.integers(0, 1000)))


def _draw_step(draw, steps, shapes, spatial):
    # mostly the newest tensor, so that chains are long; sometimes an older one, which makes a branch
    source = draw(st.sampled_from([len(shapes) - 1] * 4 + list(range(len(shapes)))))
    channels, sizes = shapes[source]
    kinds = ["conv", "conv", "batch", "batch", "batch", "activation", "function", "shared", "sequential", "group"]
    op = draw(
        st.sampled_from(
            [*kinds, "transposed", "instance", "pool", "pad", "view", "identity", "dropout", "add", "cat", "again"]
        )
    )
    if op in ("add", "cat"):
        alike = [i for i, s in enumerate(shapes) if s == shapes[source] and i != source]
        if not alike or (op == "cat" and channels > 4):
            op = "function"
        else:
            other = draw(st.sampled_from(alike))
            return Step(op, source, (other,)), (channels * (2 if op == "cat" else 1), sizes)
    if op == "again":
        alike = [i for i, s in enumerate(steps) if s.op in ("batch", "activation") and s.options[0] in (channels, 0, 1)]
        alike = [i for i in alike if steps[i].op == "activation" or steps[i].options[0] == channels]
        if alike:
            return Step(op, source, (draw(st.sampled_from(alike)),)), (channels, sizes)
        op = "function"
    if op == "conv":
        return _draw_conv(draw, source, channels, sizes)
    if op == "pad" and max(sizes) > 8:
        op = "identity"
    options = {
        "transposed": lambda: (channels, channels, draw(st.sampled_from((1, 2))), draw(st.booleans())),
        "batch": lambda: (channels, draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from((0.1, None)))),
        "group": lambda: (channels,),
        "instance": lambda: (channels, draw(st.booleans())),
        "activation": lambda: (draw(st.integers(0, 3)),),
        "function": lambda: (draw(st.sampled_from(sorted(FUNCTIONS))),),
        "sequential": lambda: (channels,),
    }.get(op, tuple)()
    if op == "pad":
        sizes = (*sizes[:-1], sizes[-1] + 2)
    return Step(op, source, options), (channels, sizes)


def _draw_conv(draw, source, channels, sizes):
    kernel = draw(st.sampled_from((1, 3)))
    padding = kernel // 2 if min(sizes) < 5 else draw(st.sampled_from((0, kernel // 2)))
    out = draw(st.sampled_from(CHANNELS))
    groups = draw(st.sampled_from([g for g in (1, 2, channels) if channels % g == 0 and out % g == 0]))
    mode = draw(st.sampled_from(("zeros", "zeros", "reflect", "circular")))
    shrunk = tuple(size - kernel + 1 + 2 * padding for size in sizes)
    return Step("conv", source, (channels, out, kernel, padding, groups, draw(st.booleans()), mode)), (out, shrunk)
