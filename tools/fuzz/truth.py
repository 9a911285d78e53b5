"""What a case's program should find, in float64, and how far a result may lie from it.

One forward in float64 gives everything: the norm's z = xhat*weight + bias + residual, then g, what follows it
elementwise (activation, mask, what the model does with the output). Errors of z are the contract's; what they do to g
and to its slope is seen by evaluating g at z and one bound to each side, so kinks and steep places need no rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normkit import contract

from .case import Case
from .norms import NORMS, is_unbatched, leading
from .standard import Standard, moved, standardize

Pair = tuple[Tensor, Tensor]  # expected, bound


@dataclass
class Truth:
    """results: name -> (expected, bound), float64. scale: name -> what a loose comparison is relative to."""

    results: dict[str, Pair] = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)
    sharp: bool = True  # no element lies so near a kink that its slope is in doubt
    beyond: bool = False  # a term leaves the range that the contract is promised in


@dataclass
class Forward:
    """One forward in float64. g: what follows z; leaves: the tensors that have a gradient, by name."""

    leaves: dict[str, Tensor]
    dy: Tensor
    standard: Standard
    weight: Tensor
    z: Tensor
    g: Callable[[Tensor], Tensor]
    keep: Tensor | None
    u: float
    step: Tensor  # how far z may be off


def compute(case: Case, tensors: dict[str, Tensor]) -> Truth:
    """The truth of a case from its plain tensors."""
    f = forward(case, tensors)
    y = f.g(f.z)
    low, high = f.g((f.z - f.step).detach()), f.g((f.z + f.step).detach())
    truth = Truth()
    # z - tanh(z), z * (1 + erf(z)): off by roundings of z, not of the result
    cancels = 8 * f.u * f.z.abs() if any(t in case.activation.lower() for t in ("tanhshrink", "gelu")) else 0
    tiny = 32 * contract.underflow(tensors["x"].dtype) if case.activation or case.after else 0
    bound = torch.maximum((low - y).abs(), (high - y).abs()) + _rounding(case, f) * y.abs() + cancels + tiny
    if case.after in ("join", "reuse"):
        bound = bound + 8 * f.u * f.leaves["x"].abs()
    truth.results["y"] = y, bound
    if case.norm.startswith("add_"):
        truth.results["total"] = tensors["x"].double() + tensors["residual"].double(), f.u * f.leaves["x"].abs()
    _gradients(case, truth, f, y, tensors)
    if is_unbatched(case):
        for name in {"y", "dx", "dresidual", "jvp", "ddx", "ddy"} & truth.results.keys():
            expected, bound = truth.results[name]
            truth.results[name] = expected.squeeze(0), bound.squeeze(0) if bound.dim() else bound
    if "running_mean" in tensors and "running_var" in tensors:
        truth.results |= moved(case, tensors, f.standard)
    truth.results = {name: (a.detach(), b.detach()) for name, (a, b) in truth.results.items()}
    truth.scale |= {name: _largest(a) for name, (a, _) in truth.results.items() if name not in truth.scale}
    return truth


def forward(case: Case, tensors: dict[str, Tensor]) -> Forward:
    """The norm, and all that its derivatives need."""
    t = {name: tensor.detach().double() for name, tensor in tensors.items() if name != "mask"}
    dtype, adds = tensors["x"].dtype, case.norm.startswith("add_")
    if case.alias == "dy_is_x":
        t["dy"] = t["x"].clone()
    if adds:
        total = tensors["x"] + tensors["residual"]
        dtype, t["x"] = total.dtype, total.double()
    if case.alias == "bias_is_weight":
        t["bias"] = t["weight"].clone()
    if case.alias == "running_is_one":
        t["running_var"] = t["running_mean"]
    elif case.alias == "running_overlaps":  # as the program has it: of the memory, whatever the strides
        mean = tensors["running_mean"].detach()
        t["running_var"] = mean.as_strided(mean.shape, (1,), 0).double()
    if is_unbatched(case):
        t |= {name: t[name].unsqueeze(0) for name in ("x", "residual", "dy") if name in t}
    x = t["x"].requires_grad_()
    leaves = {"x": x} | {n: t[n].requires_grad_() for n in ("weight", "bias") if n in t}
    keep = lay_mask(case, tensors["mask"], x) if "mask" in tensors else None
    s = standardize(case, x, t, keep)

    nothing = torch.zeros((), dtype=torch.float64)
    lay = (lambda p: p.reshape(1, -1, *[1] * (x.dim() - 2))) if NORMS[case.norm].channels else (lambda p: p)
    weight = lay(leaves["weight"]) if "weight" in leaves else nothing + 1
    bias = lay(leaves["bias"]) if "bias" in leaves else nothing
    residual = x if case.alias == "residual_is_x" else t["residual"] if "residual" in t and not adds else nothing
    if residual is not x and residual is not nothing:
        leaves["residual"] = residual.requires_grad_()
    z = s.xhat * weight + bias + (residual if keep is None else torch.where(keep, residual, 0))
    u = contract.unit_roundoff(dtype)
    if dtype == torch.float64:  # nothing is wider: sums carry dozens of roundings, each of the size of x
        u = u * 64 * (1 + float((x.detach().abs() * s.scale).nan_to_num(0, 0).max()) if x.numel() else 1)
    share = residual.detach().abs() if keep is None else torch.where(keep, residual.detach(), 0).abs()
    step = contract.output_bound(s.size, weight, bias, u).detach() + 8 * u * share
    step = step + contract.underflow(dtype)
    if dtype == torch.float64:
        step = step + 8 * u * weight.detach().abs()
    dy = torch.ones_like(x) if case.plan == "sum" else t.get("dy", torch.zeros_like(x))
    # autograd hands a gradient on in the output's dtype
    dy = (dy * 0 if case.hook == "zerotensor" else dy.detach().to(dtype).double()).requires_grad_()
    return Forward(leaves, dy, s, weight.detach(), z, following(case, keep, x), keep, u, step)


def lay_mask(case: Case, mask: Tensor, x: Tensor) -> Tensor:
    """The mask beside x, full on the axes that it covers."""
    shape = leading(case)
    if NORMS[case.norm].channels:
        axis = 0 if is_unbatched(case) else 1
        full = (mask.squeeze(axis) if mask.dim() > len(shape) else mask).expand(shape)
        return (full.unsqueeze(0) if is_unbatched(case) else full).unsqueeze(1)
    return mask.reshape(mask.shape[: len(shape)]).expand(shape).reshape(*shape, *[1] * case.part)


def following(case: Case, keep: Tensor | None, x: Tensor) -> Callable[[Tensor], Tensor]:
    """What comes after z, element by element."""
    named = eval(case.activation, {"nn": nn}) if case.activation else None
    if getattr(named, "inplace", False):
        named.inplace = False  # of the same values
    if named == "hardsigmoid":
        named = _hardsigmoid
    act: Callable[[Tensor], Tensor] = (
        (lambda z: z) if named is None else getattr(F, named) if isinstance(named, str) else named
    )
    after: dict[str, Callable[[Tensor], Tensor]] = {
        "square": lambda y: y * y,
        "mul_": lambda y: y * 2,
        "view_mul_": lambda y: y * 2,
        "relu_": F.relu,
        "join": lambda y: y + x,
        "reuse": lambda y: y + x,
        "detached": lambda y: y * y.detach(),
    }

    def g(z: Tensor) -> Tensor:
        y = act(z)
        y = y if keep is None else torch.where(keep, y, 0)
        return after[case.after](y) if case.after else y

    return g


def _hardsigmoid(z: Tensor) -> Tensor:
    """torch's own derivative in float64 has a 1 / 6 of float32."""
    return F.relu6(z + 3) / 6


def slope(g: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """dg/dz, element by element."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        return torch.autograd.grad(g(z).sum(), z)[0]


def _rounding(case: Case, f: Forward) -> float:
    """Eight roundings of what follows the norm, where something does."""
    return 8 * f.u if case.activation or case.after else 0.0


def _gradients(case: Case, truth: Truth, f: Forward, y: Tensor, tensors: dict[str, Tensor]) -> None:
    """First derivatives with their bounds; directional and second ones, which are compared loosely."""
    s, c = f.standard, contract
    names = list(f.leaves)
    # the slope of a kinked function at NaN is what its author wrote
    slopes = torch.where(f.z.isfinite(), slope(f.g, f.z), torch.nan)
    dz = slopes * f.dy.detach()
    unsure = torch.maximum(*((slope(f.g, f.z + d) - slopes).abs() for d in (-f.step, f.step))) * f.dy.detach().abs()
    truth.sharp = not dz.numel() or bool((unsure <= 1e-2 * dz.abs().max()).all())
    unsure = 1.5 * unsure + _rounding(case, f) * dz.abs()
    if case.activation and "relu" not in case.activation.lower():  # slopes are differences from 1
        unsure = unsure + 8 * f.u * f.dy.detach().abs()
    through = f.u * 8 * f.dy.detach().abs() if case.after in ("join", "reuse") or case.alias == "residual_is_x" else 0
    found = torch.autograd.grad(y, [f.leaves[n] for n in names], f.dy, create_graph=True, allow_unused=True)
    d = {n: torch.zeros_like(f.leaves[n]) if v is None else v for n, v in zip(names, found, strict=True)}

    truth.beyond = _is_beyond(case, f, dz)
    tiny = c.underflow(tensors["x"].dtype) * 4 * (1 + _largest(s.scale) * (1 + _largest(f.weight)))  # of terms
    bound = tiny + s.gradient_bound(dz * f.weight, unsure * f.weight.abs(), f.u, f.keep) + through
    if tensors["x"].dtype == torch.float64:
        bound = bound + 8 * f.u * s.scale * _largest(dz * f.weight)
    if case.alias == "residual_is_x":
        bound = bound + 8 * f.u * dz.abs() + unsure
    truth.results["dx"] = d["x"], bound
    if case.norm.startswith("add_"):
        truth.results["dresidual"] = (
            d["x"],
            bound + 8 * c.unit_roundoff(tensors["residual"].dtype) * d["x"].detach().abs(),
        )
        truth.results["dx"] = d["x"], bound + 8 * c.unit_roundoff(tensors["x"].dtype) * d["x"].detach().abs()
    elif "residual" in d:
        u = max(f.u, c.unit_roundoff(tensors["residual"].dtype))
        truth.results["dresidual"] = torch.where(slopes.isnan(), slopes, d["residual"]), 8 * u * dz.abs() + unsure
    for name, factor in (("weight", s.size), ("bias", torch.ones_like(s.size))):
        if name in d:
            truth.results[f"d{name}"] = d[name], _parameter_bound(case, f, tensors, name, dz, unsure, factor)
            truth.scale[f"d{name}"] = _largest(dz * factor) * max(1, dz.numel() // max(1, d[name].numel()))
    _higher(case, truth, f, d["x"], y)


def _is_beyond(case: Case, f: Forward, dz: Tensor) -> bool:
    """Whether a term is above half of the largest number that is computed with, where the contract ends."""
    top = torch.finfo(torch.float64 if case.tensors["x"].dtype == "float64" else torch.float32).max / 2
    s, dxhat = f.standard, dz * f.weight
    terms = (f.leaves["x"], s.scale, s.scale * f.weight, f.z, dz, dxhat, dxhat * s.scale, dz * s.size, dxhat * s.size)
    return any(_largest(torch.where(t.isfinite(), t, 0)) > top for t in terms)


def _parameter_bound(
    case: Case, f: Forward, tensors: dict[str, Tensor], name: str, dz: Tensor, unsure: Tensor, factor: Tensor
) -> Tensor:
    """The bound of a sum of dz * factor over the positions. Its terms are rounded as x is, the sum as the parameter."""
    c, s, shape = contract, f.standard, f.leaves["x"].shape
    axes = (0, *range(2, len(shape))) if NORMS[case.norm].channels else tuple(range(len(shape) - case.part))
    total = (lambda v: v.expand(shape).sum(axes)) if axes else (lambda v: v.expand(shape))
    dtypes, double = (tensors["x"].dtype, tensors[name].dtype), tensors["x"].dtype == torch.float64
    u = max(c.unit_roundoff(dtypes[1]), f.u if double else c.unit_roundoff(torch.float32))
    bound = c.parameter_gradient_bound((dz * factor).expand(shape), axes, u) if axes else 16 * u * (dz * factor).abs()
    bound = bound + total(unsure * factor + (8 * f.u * dz.abs() if double else 0))  # xhat is off by roundings of x
    terms = max(1, math.prod(shape) // max(1, bound.numel()))
    tiny = max(c.underflow(d) for d in dtypes) * 4 * (1 + _largest(s.scale) + _largest(factor) * terms)
    return (bound + tiny).reshape(f.leaves[name].shape)


def _higher(case: Case, truth: Truth, f: Forward, dx: Tensor, y: Tensor) -> None:
    scale = _largest(f.standard.scale) * max(1.0, _largest(f.weight)) * max(1.0, _largest(f.dy))
    truth.scale["dx"] = max(scale, _largest(dx))
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
            truth.scale["jvp"] = max(scale, _largest(truth.results["jvp"][0]))
        return
    onto = torch.ones_like(dx) if case.plan == "double" else f.dy.detach()
    second = torch.autograd.grad(dx, (x, f.dy), onto, allow_unused=True)
    for name, value, leaf in zip(("ddx", "ddy"), second, (x, f.dy), strict=True):
        truth.results[name] = (torch.zeros_like(leaf) if value is None else value), nothing
        truth.scale[name] = max(scale * max(1.0, _largest(f.standard.scale)), _largest(truth.results[name][0]))


def _largest(x: Tensor) -> float:
    return float(x.detach().abs().max()) if x.numel() else 0.0
