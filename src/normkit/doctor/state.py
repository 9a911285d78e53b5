"""What stands in a model without running it: its norms' settings, parameters and buffers; or what a file says of them.

Rules: tensors are copies, float64 on the CPU; a bare state dict knows neither eps nor momentum nor modes (None).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from .._torch import ConvBase, DropoutBase
from ..model import families
from ..model.families import family, is_like_norm
from ..statistics.batches import unwrapped
from ..statistics.layers import find
from . import graph
from .graph import GraphNorm
from .pairs import pairs

_STATISTICS = ("running_mean", "running_var")
_LINEAR = (ConvBase, nn.Linear)
_OWN = (*_STATISTICS, "weight", "bias")


@dataclass(frozen=True, eq=False)
class NormState:
    """One norm. mean, var, weight, bias: float64 on the CPU, (C,) in most families; None where it has none.

    dtypes: of the tensors as they are. counter: num_batches_tracked. tracks: track_running_stats. fixed: why its
    statistics must not move ("frozen"), else None. trainable: of its own parameters, which require gradients. copy: of
    which state dict in a file it is a part ("ema"), "" for the only one. graph: of a call in an exported graph, whether
    it normalizes by the batch there; None for a module.
    """

    name: str
    kind: str
    family: str | None
    mean: Tensor | None = None
    var: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    counter: float | None = None
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    eps: float | None = None
    momentum: float | None = None
    momentum_known: bool = False
    tracks: bool | None = None
    training: bool | None = None
    fixed: str | None = None
    trainable: Mapping[str, bool] = field(default_factory=dict)
    groups: int | None = None
    decay: float = 0.0
    copy: str = ""
    graph: bool | None = None

    @property
    def where(self) -> str:
        """The name in findings."""
        return f"{self.copy}: {self.name}" if self.copy else self.name

    @property
    def tracked(self) -> bool:
        """Whether it keeps a mean and a variance a channel."""
        return self.mean is not None and self.var is not None

    @property
    def at_start(self) -> bool:
        """Whether its statistics are those of a new layer: 0 and 1, exactly."""
        return self.tracked and bool((self.mean == 0).all()) and bool((self.var == 1).all())  # type: ignore[union-attr]  # tracked

    @property
    def affine_at_start(self) -> bool:
        """Whether gamma is 1 and beta 0, exactly, or absent: no optimizer step has reached them.

        gamma 0 throughout is a start too, of a residual branch that adds nothing at first.
        """
        gamma = self.weight is None or bool((self.weight == 1).all() or (self.weight == 0).all())
        return gamma and (self.bias is None or bool((self.bias == 0).all()))


@dataclass(frozen=True, eq=False)
class State:
    """All norms of a model in order, and what surrounds them.

    kind: the model's class; "state dict" for a bare one. trains: it is in training mode, or an optimizer came with it.
    stepped: whether that optimizer has made a step; None without one. averaged: how many models an averaged copy
    (SWA, EMA) holds. replicated: it is wrapped for several processes. library: the
    package of the model's class. biased: convolutions and linear layers that
    have a bias. dropouts: name -> p, above 0. rates: of convolutions and
    linear layers in the optimizer, without a bias: its rate over the squared norm of one output's weights, on average.
    teachers: name of a part without gradients -> the part of which it is an average or a copy.
    """

    norms: tuple[NormState, ...]
    kind: str
    trains: bool = False
    training: bool | None = None
    stepped: bool | None = None
    averaged: int | None = None
    replicated: bool = False
    library: str = ""
    biased: frozenset[str] = frozenset()
    dropouts: Mapping[str, float] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    teachers: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> NormState:
        for norm in self.norms:
            if norm.name == name:
                return norm
        raise KeyError(name)

    @property
    def copies(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(norm.copy for norm in self.norms))

    def of_copy(self, copy: str) -> tuple[NormState, ...]:
        return tuple(norm for norm in self.norms if norm.copy == copy)


def of_model(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> State:
    """Read the norms of a model, without running it. Wrappers of DDP and compilers are seen through."""
    replicated, model = isinstance(model, DistributedDataParallel), unwrapped(model)
    fixed = {layer.module: layer.left_alone for layer in find(model)}
    decay = _decay(optimizer)
    norms = [
        _read(name, module, fixed.get(module), decay)
        for name, module in model.named_modules()
        if family(module) is not None or is_like_norm(module)
    ]
    norms += [_of_graph(norm) for norm in graph.norms_of(model)]
    averaged = getattr(model, "n_averaged", None)
    return State(
        tuple(norms),
        type(model).__name__,
        trains=model.training or optimizer is not None,
        training=model.training,
        stepped=None if optimizer is None else bool(optimizer.state),
        averaged=int(averaged) if isinstance(averaged, Tensor) and averaged.numel() == 1 else None,
        replicated=replicated,
        library=type(model).__module__.partition(".")[0],
        biased=frozenset(
            name for name, module in model.named_modules() if isinstance(module, _LINEAR) and module.bias is not None
        ),
        rates=_rates(model, optimizer),
        teachers=pairs(model),
        dropouts={
            name: float(module.p)
            for name, module in model.named_modules()
            if isinstance(module, DropoutBase) and module.p > 0
        },
    )


def of_tensors(tensors: Mapping[str, Any], copy: str = "") -> tuple[NormState, ...]:
    """The norms of a bare state dict that keep statistics, told by the names of their buffers."""
    layers = [key.removesuffix("running_mean") for key in tensors if key.rpartition(".")[2] == "running_mean"]
    found = []
    for layer in layers:
        own: dict[str, Any] = {name: tensors.get(layer + name) for name in (*_OWN, "num_batches_tracked")}
        if all(isinstance(own[name], Tensor) and _per_channel(own[name]) for name in _STATISTICS):
            found.append(NormState(layer.rstrip("."), "norm with running statistics", "batch", copy=copy, **_held(own)))
    return tuple(found)


def _of_graph(norm: GraphNorm) -> NormState:
    return NormState(
        norm.name,
        "batch_norm in a graph",
        "batch",
        eps=norm.eps,
        momentum=norm.momentum,
        momentum_known=True,
        tracks=True,
        graph=norm.training,
        **_held(norm.tensors),
    )


def _read(name: str, module: Any, fixed: str | None, decay: Mapping[int, float]) -> NormState:
    own = {key: module._buffers.get(key) for key in (*_STATISTICS, "num_batches_tracked")}
    own |= {key: _tensor(module, key) for key in ("weight", "bias")}
    statistics = [own[key] for key in _STATISTICS]
    if any(held is not None and not _per_channel(held) for held in statistics):
        own |= dict.fromkeys(_STATISTICS)
    momentum = getattr(module, "momentum", None)
    parameters = dict(module.named_parameters(recurse=False))
    return NormState(
        name,
        type(module).__name__,
        family(module),
        eps=_eps(module),
        momentum=float(momentum) if isinstance(momentum, (int, float)) else None,
        momentum_known=hasattr(module, "momentum"),
        tracks=getattr(module, "track_running_stats", None),
        training=module.training,
        fixed=fixed,
        trainable={key: parameter.requires_grad for key, parameter in parameters.items()},
        groups=getattr(module, "num_groups", None),
        decay=max((decay.get(id(parameter), 0.0) for parameter in parameters.values()), default=0.0),
        **_held(own),
    )


def _held(own: Mapping[str, Any]) -> dict[str, Any]:
    tensors = {key: value for key, value in own.items() if isinstance(value, Tensor) and not _without_values(value)}
    counter = tensors.pop("num_batches_tracked", None)
    wide = {key.removeprefix("running_"): _wide(value) for key, value in tensors.items()}
    dtypes = {key: value.dtype for key, value in tensors.items()}
    return {
        **wide,
        "counter": float(counter) if counter is not None and counter.numel() == 1 else None,
        "dtypes": dtypes if counter is None else {**dtypes, "num_batches_tracked": counter.dtype},
    }


def _tensor(module: nn.Module, name: str) -> Tensor | None:
    found = getattr(module, name, None)  # parametrized and frozen layers have them elsewhere
    return found if isinstance(found, Tensor) and found.is_floating_point() else None


def _eps(module: Any) -> float | None:
    for name in ("eps", "variance_epsilon", "epsilon"):
        found = getattr(module, name, None)
        if isinstance(found, (int, float)):
            return float(found)
    try:
        return float(families.eps(module))
    except Exception:  # a foreign class: its eps is not known
        return None


def _per_channel(tensor: Tensor) -> bool:
    return not is_lazy(tensor) and tensor.dim() == 1


def _without_values(tensor: Tensor) -> bool:
    return is_lazy(tensor) or tensor.is_meta


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64, copy=True)


def _rates(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, float]:
    groups = [] if optimizer is None else optimizer.param_groups
    rates = {id(parameter): float(group.get("lr", 0)) for group in groups for parameter in group["params"]}
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, _LINEAR) and module.bias is None and id(module.weight) in rates:
            square = float(module.weight.detach().double().square().sum()) / module.weight.shape[0]
            found[name] = rates[id(module.weight)] / square if square > 0 else 0.0
    return found


def _decay(optimizer: torch.optim.Optimizer | None) -> dict[int, float]:
    """id(parameter) -> its weight decay."""
    groups = [] if optimizer is None else optimizer.param_groups
    return {id(parameter): float(group.get("weight_decay", 0)) for group in groups for parameter in group["params"]}
