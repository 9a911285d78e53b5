"""What the gradients of a case should be, in float64, and how far they may lie from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from normkit import contract
from normkit._activation import AFTER, resolve

from . import kept, smooth, turns
from .case import Case
from .modulation import is_modulated
from .norms import NORMS
from .standard import of_rounded_mean, of_small_factor

if TYPE_CHECKING:
    from .truth import Forward, Truth


def gradients(case: Case, truth: Truth, f: Forward, y: Tensor, tensors: dict[str, Tensor]) -> None:
    """First derivatives with their bounds; directional and second ones, which are compared loosely."""
    s, c = f.standard, contract
    names = list(f.leaves)
    # the slope of a kinked function at NaN is what its author wrote
    slopes = torch.where(f.z.isfinite(), slope(f.g, f.z), torch.nan)
    dy = f.dy.detach().abs()
    dz = slopes * f.dy.detach()
    k, least = kept.roundoff(case), kept.underflow(case)
    lost = (
        k * f.leaves["x"].detach().abs() + least
    ) * s.scale + k * s.size  # of xhat, where x is kept with less digits
    own = f.own
    step = f.step + lost * f.weight.abs()
    # each term of z is made of something that is kept: weight, bias, scale and shift, the residual
    step = step + k * ((s.size * f.weight).abs() + (own.bias * own.scale).abs() + f.added)
    step = step + least * ((s.size + 1) * own.scale.abs() + own.y.abs() + 2)
    unsure = turns.change(lambda z: slope(f.g, z), f.z, step) * dy
    truth.sharp = not dz.numel() or bool((unsure <= 1e-2 * dz.abs().max()).all())
    unsure = 1.5 * unsure + rounding(case, f) * dz.abs()
    if case.activation and "relu" not in case.activation.lower():
        unsure = unsure + smooth.slope_roundings(f.activation, f.z.detach()) * f.u * dy
        if _is_operation(case):  # which may keep its own value: tanhshrink's slope is 1 - (1 - tanh^2)
            unsure = unsure + k / 2 * dy
    through = f.u * 8 * dy if case.after in ("join", "reuse") or case.alias == "residual_is_x" else 0
    found = torch.autograd.grad(y, [f.leaves[n] for n in names], f.dy, create_graph=True, allow_unused=True)
    d = {n: torch.zeros_like(f.leaves[n]) if v is None else v for n, v in zip(names, found, strict=True)}

    truth.beyond = _is_beyond(case, f, dz)
    tiny = c.underflow(f.dtype) * 4 * (1 + largest(s.scale) * (1 + largest(f.weight)))  # of terms
    of_terms = (unsure + k * dz.abs()) * f.weight.abs() + (k * f.weight.abs() + least) * dz.abs()
    bound = tiny + s.gradient_bound(dz * f.weight, of_terms, lost, f.u, f.keep) + through
    bound = bound + of_small_factor(case, s, f.weight, f.dtype) * dz.abs()
    bound = bound + s.of_small_slope(dz * f.weight, f.keep, _computed(f.dtype))
    if f.dtype == torch.float64:
        bound = bound + 8 * f.u * s.scale * largest(dz * f.weight)
    if case.alias == "residual_is_x":
        bound = bound + 8 * f.u * dz.abs() + unsure
    truth.results["dx"] = d["x"], bound
    if case.norm.startswith("add_"):  # one gradient, which autograd casts to the dtype of each
        for name, tensor in (("dx", "x"), ("dresidual", "residual")):
            truth.results[name] = d["x"], bound + 8 * c.unit_roundoff(tensors[tensor].dtype) * d["x"].detach().abs()
    elif "residual" in d:
        u = max(f.u, c.unit_roundoff(tensors["residual"].dtype))
        truth.results["dresidual"] = torch.where(slopes.isnan(), slopes, d["residual"]), 8 * u * dz.abs() + unsure
    # Where x is near the least number, x - mean is a whole number of these: xhat is off by one of them, scaled.
    lost = lost + c.underflow(_computed(f.dtype)) * (1 + s.scale)
    lost = lost + of_rounded_mean(case, s, f.leaves["x"], f.keep, f.dtype)
    most = dz.abs() + unsure  # of a term dz * xhat both factors are off, also where the truth of dz is 0
    ones = torch.ones_like(s.size)
    scale = own.scale.abs() * ones
    factors = {  # of dz in each sum, and how far that may be off
        "weight": (s.size * scale, lost * scale),
        "bias": (scale, 0 * ones),
        "scale": ((s.size * own.weight).abs() + own.bias.abs(), lost * own.weight.abs() + own.step),
        "shift": (ones, 0 * ones),
    }
    for name, (factor, vague) in factors.items():
        if name in d:
            off = unsure * factor + most * (vague + (k * factor if "scale" in d else 0))
            off = off + (8 * f.u * most * scale if f.dtype == torch.float64 else 0)  # xhat is off by roundings of x
            truth.results[f"d{name}"] = d[name], _parameter_bound(f, tensors[name], name, dz, off, factor, k > 0)
            truth.scale[f"d{name}"] = largest(dz * factor) * max(1, dz.numel() // max(1, d[name].numel()))
    _higher(case, truth, f, d["x"], y)


def slope(g: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """dg/dz, element by element."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        return torch.autograd.grad(g(z).sum(), z)[0]


def rounding(case: Case, f: Forward) -> float:
    """Eight roundings of what follows the norm, where something does."""
    return 8 * f.u if case.activation or case.after or is_modulated(case) else 0.0


def _is_beyond(case: Case, f: Forward, dz: Tensor) -> bool:
    """Whether a term is above half of the largest number that is computed with, where the contract ends."""
    s, dxhat, x = f.standard, dz * f.weight, f.leaves["x"]
    computed = _computed(f.dtype)
    terms = (x, s.scale, s.scale * f.weight, f.z, dz, dxhat, dxhat * s.scale, dz * s.size, dxhat * s.size)
    terms = (*terms, f.own.y, dz * f.own.y, dz * f.own.scale)
    if _is_above_half(computed, *terms):
        return True
    if case.norm == "normalize" and _is_above_half(f.dtype, dxhat * s.scale):  # its gradient comes in two halves
        return True
    if "residual" in f.leaves and _is_above_half(f.dtype, f.leaves["residual"]):  # it is rounded to the dtype of x
        return True
    if case.after and _is_above_half(f.dtype, slope(f.after, f.activation(f.z)) * f.dy):  # what comes to the norm
        return True
    if _is_operation(case) and _is_above_half(f.dtype, f.z):  # it takes z rounded to the dtype
        return True
    if _is_operation(case) and f.activation is smooth.gelu_tanh and _is_above_half(computed, f.z**3):  # torch cubes it
        return True
    dtype = kept.kept_dtype(case)  # composed operations keep 1 / std, whose derivative is its cube
    return dtype is not None and _is_above_half(dtype, x, s.scale**3, f.weight, f.z, s.scale * x)


def _computed(dtype: torch.dtype) -> torch.dtype:
    """What kernels compute in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _is_above_half(dtype: torch.dtype, *terms: Tensor) -> bool:
    top = torch.finfo(dtype).max / 2
    return any(largest(torch.where(t.isfinite(), t, 0)) > top for t in terms)


def _is_operation(case: Case) -> bool:
    """Whether the activation is an operation of its own: no kernel has it, or the norm's kernels have none."""
    activation = eval(case.activation, {"nn": nn}) if case.activation else None
    no_kernel = resolve(activation).code == AFTER or not NORMS[case.norm].channels
    no_kernel = no_kernel or is_modulated(case)
    return activation is not None and (no_kernel or "nk.backend('aten')" in (*case.contexts, *case.around))


def _parameter_bound(
    f: Forward, parameter: Tensor, name: str, dz: Tensor, off: Tensor, factor: Tensor, kept_narrow: bool
) -> Tensor:
    """The bound of a sum of dz * factor over the positions. Its terms are rounded as x is, the sum as the parameter.

    off: how far each term may be off besides; kept_narrow: a hook gives the parameter back in float32, and the sum gets
    its dtype.
    """
    c, s, shape = contract, f.standard, f.leaves["x"].shape
    laid = f.laid[name].shape
    axes = tuple(i for i, size in enumerate([1] * (len(shape) - len(laid)) + list(laid)) if size == 1)
    total = (lambda v: v.expand(shape).sum(axes)) if axes else (lambda v: v.expand(shape))
    dtypes, narrow = (f.dtype, parameter.dtype), c.unit_roundoff(torch.float32)
    double = f.dtype == torch.float64
    u = max(c.unit_roundoff(dtypes[1]), f.u if double else 0, narrow if kept_narrow or not double else 0)
    bound = c.parameter_gradient_bound((dz * factor).expand(shape), axes, u) if axes else 16 * u * (dz * factor).abs()
    bound = bound + total(off)
    terms = max(1, math.prod(shape) // max(1, bound.numel()))
    tiny = max(c.underflow(d) for d in dtypes) * 4 * (1 + largest(s.scale) + largest(factor) * terms)
    return (bound + tiny).reshape(f.leaves[name].shape)


def _higher(case: Case, truth: Truth, f: Forward, dx: Tensor, y: Tensor) -> None:
    scale = largest(f.standard.scale) * max(1.0, largest(f.weight)) * max(1.0, largest(f.dy))
    truth.scale["dx"] = max(scale, largest(dx))
    if case.norm.startswith("add_"):
        truth.scale["dresidual"] = truth.scale["dx"]
    if case.plan != "double" and case.transform not in ("grad_grad", "jvp", "dual"):
        return
    x, nothing = f.leaves["x"], torch.zeros((), dtype=torch.float64)
    if case.transform in ("jvp", "dual"):
        if dx.requires_grad:  # the derivative of the pulled-back gradient by its covector is the pushforward
            covector = torch.zeros_like(y, requires_grad=True)
            (pulled,) = torch.autograd.grad(y, x, covector, create_graph=True)
            truth.results["jvp"] = torch.autograd.grad(pulled, covector, f.dy)[0], nothing
            truth.scale["jvp"] = max(scale, largest(truth.results["jvp"][0]))
        return
    onto = torch.ones_like(dx) if case.plan == "double" else f.dy.detach()
    second = torch.autograd.grad(dx, (x, f.dy), onto, allow_unused=True)
    for name, value, leaf in zip(("ddx", "ddy"), second, (x, f.dy), strict=True):
        truth.results[name] = (torch.zeros_like(leaf) if value is None else value), nothing
        truth.scale[name] = max(scale * max(1.0, largest(f.standard.scale)), largest(truth.results[name][0]))


def largest(x: Tensor) -> float:
    """The largest magnitude in it."""
    return float(x.detach().abs().max()) if x.numel() else 0.0
