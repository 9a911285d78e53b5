"""Batch norms that are no modules: the calls of batch_norm in an exported or traced graph.

Rule: read, never run. A call is named as the layer was from which its running_mean comes ("layer1.bn").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

# operator -> the places of (weight, bias, running_mean, running_var, training, momentum, eps); None: it never trains
_LEGIT = (1, 2, 3, 4, 5, 6, 7)
OPERATORS: dict[str, tuple[int | None, ...]] = {
    "aten.batch_norm": _LEGIT,
    "aten.native_batch_norm": _LEGIT,
    "aten._native_batch_norm_legit": _LEGIT,
    "aten._native_batch_norm_legit_functional": _LEGIT,
    "aten._native_batch_norm_legit_no_training": (1, 2, 3, 4, None, 5, 6),
}
DEFAULTS = (1e-5, 0.1)  # eps and momentum of torch.nn.functional.batch_norm


@dataclass(frozen=True, eq=False)
class GraphNorm:
    """One call. tensors: weight, bias, running_mean, running_var, those that it has. training: by batch statistics."""

    name: str
    tensors: dict[str, Tensor]
    training: bool
    momentum: float
    eps: float


def norms_of(model: nn.Module) -> Iterator[GraphNorm]:
    """The calls in all graphs of a model, in order."""
    for path, module in model.named_modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                places = OPERATORS.get(str(node.target).removesuffix(".default"))
                found = None if places is None else _read(path, module, node, places)
                if found is not None:
                    yield found


def _read(path: str, module: fx.GraphModule, node: fx.Node, places: tuple[int | None, ...]) -> GraphNorm | None:
    *held, training, momentum, eps = (None if p is None or p >= len(node.args) else node.args[p] for p in places)
    named = dict(zip(("weight", "bias", "running_mean", "running_var"), held, strict=True))
    sources = {key: str(arg.target) for key, arg in named.items() if isinstance(arg, fx.Node) and arg.op == "get_attr"}
    tensors = {key: tensor for key, source in sources.items() if (tensor := _tensor(module, source)) is not None}
    if "running_mean" not in tensors or not isinstance(eps, float) or not isinstance(momentum, float):
        return None
    layer = sources["running_mean"].rpartition(".")[0] or node.name
    return GraphNorm(f"{path}.{layer}".lstrip("."), tensors, bool(training), momentum, eps)


def _tensor(module: nn.Module, name: str) -> Tensor | None:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, Tensor) else None
