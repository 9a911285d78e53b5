"""Recognising an activation after a norm: as a module, as a call seen in a run, and as a node of a traced block.

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

from .._activation import FUSED, IDENTITY, MODULES, Activation, given_as, module_of, resolve
from .._torch import has_own_forward, hooked
from ..kernels import native

_MARK = "_normkit_computes"
_WITH_ARGUMENTS = frozenset(("leaky_relu", "elu", "gelu"))


def of_module(module: nn.Module) -> str | nn.Module | None:
    """The activation that this module is, or None."""
    known = given_as(resolve(module))
    return known if known is not None or type(module).__module__.startswith("torch.") else _by_numbers(module)


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
    candidates: list[str | nn.Module] = [*sorted(FUSED), nn.GELU("tanh")]
    for found in candidates:
        ours = _curve(resolve(found).function, grid)
        if all(torch.allclose(curve, ours, rtol=1e-12, atol=1e-12) for curve in theirs):
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


def seen_as(module: nn.Module) -> Activation | None:
    """What a norm computes in this module's place, or None where a call of it may be something else."""
    if type(module) in MODULES:
        known = resolve(module)
        return known if known.code > IDENTITY else None
    marked = module.__dict__.get(_MARK)
    return None if marked is None or has_own_forward(module) or hooked(module) else resolve(marked)


def is_function(op: str) -> bool:
    """Whether a call of a function or method by this name may be an activation ("relu", "relu_")."""
    return op.removesuffix("_") in FUSED


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
    return name if name in FUSED else None


def _with_arguments(name: str, more: tuple[Any, ...], options: dict[str, Any]) -> str | nn.Module | None:
    """relu(x, True), leaky_relu(x, 0.2), gelu(x, approximate="tanh")."""
    if name not in _WITH_ARGUMENTS:
        return name if len(more) == 1 and isinstance(more[0], bool) and not options else None
    try:
        return of_module(module_of(name, *more[:1], **options))
    except TypeError:
        return None
