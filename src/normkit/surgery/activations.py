"""Recognising an activation behind a norm: as a module, as a call seen in a run, and as a node of a traced block.

Rules: only activations without parameters that the kernels fuse; torch's modules by their exact type, those of other
libraries by numbers: values and slopes on a grid, in float64. The answer is what a
layer takes as `activation`: a name of torch.nn.functional, or a module where an argument is not the default.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .._activation import resolve
from ..kernels import native
from ..model.swap import hooked

_NAMES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Mish: "mish",
}
_MARK = "_normkit_computes"
_WITH_ARGUMENTS = frozenset((nn.LeakyReLU, nn.ELU, nn.GELU))
_FUNCTIONS = frozenset((*_NAMES.values(), "gelu", "leaky_relu", "elu"))


def of_module(module: nn.Module) -> str | nn.Module | None:
    """The activation that this module is, or None."""
    kind = type(module)
    if kind in _NAMES:
        return _NAMES[kind]
    if isinstance(module, nn.LeakyReLU) and kind is nn.LeakyReLU:
        return "leaky_relu" if module.negative_slope == 0.01 else nn.LeakyReLU(module.negative_slope)
    if isinstance(module, nn.ELU) and kind is nn.ELU:
        return "elu" if module.alpha == 1.0 else nn.ELU(module.alpha)
    if isinstance(module, nn.GELU) and kind is nn.GELU:
        return "gelu" if module.approximate == "none" else nn.GELU(module.approximate)
    return None if kind.__module__.startswith("torch.") else _by_numbers(module)


def _by_numbers(module: nn.Module) -> str | nn.Module | None:
    """The activation that has its values and slopes from -100 to 100, in training and evaluation."""
    if next(module.children(), None) is not None or any(True for _ in (*module.parameters(), *module.buffers())):
        return None
    steps = torch.linspace(-9, 9, 181, dtype=torch.float64)
    grid = torch.cat([steps, steps * 1e-4, torch.tensor([-100.0, -30, 30, 100], dtype=torch.float64)])
    grid = grid[(grid.abs() - 3).abs() > 1e-9]  # where some have two slopes
    grid = grid[(grid.abs() > 1e-9) & ((grid - 6).abs() > 1e-9)]
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            theirs = [_curve(copy.deepcopy(module).train(mode).forward, grid) for mode in (True, False)]
    except Exception:
        return None
    candidates: tuple[str | nn.Module, ...] = (*_NAMES.values(), "gelu", nn.GELU("tanh"), "leaky_relu", "elu")
    for found in candidates:
        known = found if isinstance(found, nn.Module) else getattr(F, found)
        if all(torch.allclose(curve, _curve(known, grid), rtol=1e-12, atol=1e-12) for curve in theirs):
            return found
    return None


def _curve(function: Any, grid: torch.Tensor) -> torch.Tensor:
    x = grid.clone().requires_grad_()
    y = function(x * 1)  # * 1: it may work in place
    (slope,) = torch.autograd.grad(y.sum(), x)
    return torch.stack([y.detach(), slope])


def mark(module: nn.Module) -> None:
    """Note on an activation of another library which one it is: `seen_as` looks there."""
    if not type(module).__module__.startswith("torch."):
        module.__dict__[_MARK] = of_module(module)


def unmark(module: nn.Module) -> None:
    module.__dict__.pop(_MARK, None)


def seen_as(module: nn.Module) -> str | nn.Module | None:
    """What a norm takes in this module's place, or None where a call of it may be something else."""
    kind = type(module)
    if "forward" in module.__dict__ or hooked(module):
        return None
    return module if kind in _WITH_ARGUMENTS else _NAMES.get(kind) or module.__dict__.get(_MARK)


def is_function(op: str) -> bool:
    """Whether a call of a function or method by this name may be an activation ("relu", "relu_")."""
    return op.removesuffix("_") in _FUNCTIONS


def reads_residual(activation: str | nn.Module) -> bool:
    """Whether the backward of a fused addition and activation (a module, or the name of a call) reads the residual."""
    known = of_module(activation) if isinstance(activation, nn.Module) else activation.removesuffix("_")
    return not native.keeps_bits(resolve(known).code)


def of_node(node: fx.Node, owner: nn.Module) -> str | nn.Module | None:
    """The activation that a node of a traced forward computes of its one tensor, or None."""
    if node.op == "call_module":
        return of_module(owner.get_submodule(str(node.target)))
    name = _function_name(node)
    if name is None or len(node.args) + len(node.kwargs) == 0:
        return None
    options = {key: value for key, value in node.kwargs.items() if key not in ("inplace", "input")}
    more = node.args[1:] if "input" not in node.kwargs else node.args
    if not more and not options:
        return name
    return _with_arguments(name, more, options)


def _function_name(node: fx.Node) -> str | None:
    if node.op == "call_method":
        name = str(node.target).removesuffix("_")
    else:
        name = getattr(node.target, "__name__", "").removesuffix("_")
        known = {getattr(library, name + end, None) for library in (F, torch) for end in ("", "_")}
        if node.target not in known - {None}:
            return None
    return name if name in _FUNCTIONS else None


def _with_arguments(name: str, more: tuple[Any, ...], options: dict[str, Any]) -> str | nn.Module | None:
    """relu(x, True), leaky_relu(x, 0.2), gelu(x, approximate="tanh")."""
    kinds: dict[str, Any] = {"leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "gelu": nn.GELU}
    if name not in kinds:
        return name if len(more) == 1 and isinstance(more[0], bool) and not options else None
    try:
        return of_module(kinds[name](*more[:1], **options))
    except TypeError:
        return None
