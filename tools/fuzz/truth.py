"""What a case's program should find, in float64, and how far a result may lie from it.

One forward in float64 gives everything: the norm's z = xhat*weight + bias + residual, then g, what follows it
elementwise (activation, mask, what the model does with the output). Errors of z are the contract's; what they do to g
and to its slope is seen by evaluating g at z and up to one bound to each side (`turns.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normkit import contract

from . import smooth, turns
from .case import Case
from .gradients import gradients, largest, rounding
from .modulation import axes_of
from .norms import NORMS, is_unbatched, leading
from .program import KEEPS_GRAPH
from .standard import Standard, moved, of_rounded_mean, of_small_factor, standardize

Pair = tuple[Tensor, Tensor]  # expected, bound


@dataclass
class Truth:
    """results: name -> (expected, bound), float64. scale: name -> what a loose comparison is relative to."""

    results: dict[str, Pair] = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)
    sharp: bool = True  # no element lies so near a kink that its slope is in doubt
    beyond: bool = False  # a term leaves the range that the contract is promised in


@dataclass
class Own:
    """The norm without its modulation: weight, bias, y, how far y may be off. scale: of the modulation."""

    weight: Tensor
    bias: Tensor
    y: Tensor
    step: Tensor
    scale: Tensor


@dataclass
class Forward:
    """One forward in float64. leaves: the tensors that have a gradient, by name; weight: what xhat is multiplied by,
    the modulation's scale in it; g: what follows z, first the activation; after: what the program does with y; added:
    the magnitudes of what is added behind the norm; laid: leaves but x, beside x."""

    leaves: dict[str, Tensor]
    dy: Tensor
    standard: Standard
    own: Own
    weight: Tensor
    z: Tensor
    activation: Callable[[Tensor], Tensor]
    g: Callable[[Tensor], Tensor]
    after: Callable[[Tensor], Tensor]
    added: Tensor
    laid: dict[str, Tensor]
    keep: Tensor | None
    dtype: torch.dtype  # of what is normalized
    u: float
    step: Tensor  # how far z may be off


def compute(case: Case, tensors: dict[str, Tensor]) -> Truth:
    """The truth of a case from its plain tensors."""
    f = forward(case, tensors)
    y = f.g(f.z)
    truth = Truth()
    bound = turns.change(f.g, f.z, f.step) + rounding(case, f) * y.abs() + _of_activation(case, f)
    if case.after in ("join", "reuse"):
        bound = bound + 8 * f.u * f.leaves["x"].abs()
    truth.results["y"] = y, bound
    if case.norm.startswith("add_"):
        truth.results["total"] = tensors["x"].double() + tensors["residual"].double(), f.u * f.leaves["x"].abs()
    gradients(case, truth, f, y, tensors)
    if is_unbatched(case):
        for name in {"y", "dx", "dresidual", "dscale", "dshift", "jvp", "ddx", "ddy"} & truth.results.keys():
            expected, bound = truth.results[name]
            truth.results[name] = expected.squeeze(0), bound.squeeze(0) if bound.dim() else bound
    if "running_mean" in tensors and "running_var" in tensors:
        truth.results |= moved(case, tensors, f.standard)
    truth.results = {name: (a.detach(), b.detach()) for name, (a, b) in truth.results.items()}
    truth.scale |= {name: largest(a) for name, (a, _) in truth.results.items() if name not in truth.scale}
    return truth


def forward(case: Case, tensors: dict[str, Tensor]) -> Forward:
    """The norm, and all that its derivatives need."""
    t = {name: tensor.detach().double() for name, tensor in tensors.items() if name != "mask"}
    dtype, adds = tensors["x"].dtype, case.norm.startswith("add_")
    if case.alias == "dy_is_x":  # one memory: an edit behind the forward is rounded to its dtype
        edited = case.edit == "x" and case.transform in KEEPS_GRAPH
        t["dy"] = (tensors["x"].detach() + 1).double() if edited else t["x"].clone()
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
        t |= {name: t[name].unsqueeze(0) for name in ("x", "residual", "dy", "scale", "shift") if name in t}
    x = t["x"].requires_grad_()
    leaves = {"x": x} | {n: t[n].requires_grad_() for n in ("weight", "bias", "scale", "shift") if n in t}
    keep = lay_mask(case, tensors["mask"], x) if "mask" in tensors else None
    s = standardize(case, x, t, keep, dtype)

    nothing = torch.zeros((), dtype=torch.float64)

    def lay(p: Tensor) -> Tensor:
        if not NORMS[case.norm].channels or (case.norm == "normalize" and p.dim() != 1):
            return p  # of the last axes; `normalize` broadcasts whatever is no vector
        return p.reshape(1, -1, *[1] * (x.dim() - 2))

    laid = {name: lay(leaves[name]) for name in ("weight", "bias") if name in leaves}
    laid |= {name: lay_modulation(case, leaves[name], x) for name in ("scale", "shift") if name in leaves}
    weight, bias = laid.get("weight", nothing + 1), laid.get("bias", nothing)
    seen = {name: p if keep is None else torch.where(keep, p, 0) for name, p in laid.items()}  # a mask hides the others
    scale, shift = seen.get("scale", nothing + 1), seen.get("shift", nothing)
    residual = x if case.alias == "residual_is_x" else t["residual"] if "residual" in t and not adds else nothing
    if residual is not x and residual is not nothing:
        leaves["residual"] = residual.requires_grad_()
    y = s.xhat * weight + bias
    z = y * scale + shift + (residual if keep is None else torch.where(keep, residual, 0))
    u = contract.unit_roundoff(dtype)
    if dtype == torch.float64:  # nothing is wider: sums carry dozens of roundings, each of the size of x
        u = u * 64 * (1 + float((x.detach().abs() * s.scale).nan_to_num(0, 0).max()) if x.numel() else 1)
    share = residual.detach().abs() if keep is None else torch.where(keep, residual.detach(), 0).abs()
    own = contract.output_bound(s.size, weight, bias, u).detach()
    if dtype == torch.float64:
        own = own + 8 * u * weight.detach().abs()
    own = own + of_rounded_mean(case, s, x, keep, dtype) * weight.detach().abs()
    apart = (s.core / s.scale).abs()  # |x - mean|
    own = own + torch.where(apart.isfinite(), apart, 0) * of_small_factor(case, s, weight.detach(), dtype)
    step = (own * scale.abs() + 8 * u * shift.abs()).detach() + 8 * u * share
    step = step + contract.underflow(dtype)
    dy = torch.ones_like(x) if case.plan == "sum" else t.get("dy", torch.zeros_like(x))
    # autograd hands a gradient on in the output's dtype
    dy = (dy * 0 if case.hook == "zerotensor" else dy.detach().to(dtype).double()).requires_grad_()
    act = smooth.exact(eval(case.activation, {"nn": nn}) if case.activation else None)
    after = following(case, x)

    def g(z: Tensor) -> Tensor:
        y = act(z)
        return after(y if keep is None else torch.where(keep, y, 0))

    alone = Own(weight.detach(), bias.detach(), y.detach(), own, scale.detach())
    added = shift.detach().abs() + share
    return Forward(leaves, dy, s, alone, (weight * scale).detach(), z, act, g, after, added, laid, keep, dtype, u, step)


def lay_modulation(case: Case, t: Tensor, x: Tensor) -> Tensor:
    """Scale or shift beside x."""
    rank, axes = x.dim(), 0 if is_unbatched(case) else axes_of(case)
    if t.dim() in (0, rank):
        return t.reshape(t.shape or [1] * rank)
    if axes == 0:
        return t.reshape(*t.shape, *[1] * (rank - 2))
    lead = t.shape[:1] if t.dim() == axes + 1 else ()
    vector = t.shape[len(lead) :]
    return t.reshape(*lead, *[1] * (rank - len(lead) - len(vector)), *vector)


def lay_mask(case: Case, mask: Tensor, x: Tensor) -> Tensor:
    """The mask beside x, full on the axes that it covers."""
    shape = leading(case)
    if NORMS[case.norm].channels:
        axis = 0 if is_unbatched(case) else 1
        full = (mask.squeeze(axis) if mask.dim() > len(shape) else mask).expand(shape)
        return (full.unsqueeze(0) if is_unbatched(case) else full).unsqueeze(1)
    return mask.reshape(mask.shape[: len(shape)]).expand(shape).reshape(*shape, *[1] * case.part)


def following(case: Case, x: Tensor) -> Callable[[Tensor], Tensor]:
    """What the program does with the norm's output, element by element."""
    after: dict[str, Callable[[Tensor], Tensor]] = {
        "": lambda y: y,
        "square": lambda y: y * y,
        "mul_": lambda y: y * 2,
        "view_mul_": lambda y: y * 2,
        "relu_": F.relu,
        "join": lambda y: y + x,
        "reuse": lambda y: y + x,
        "detached": lambda y: y * y.detach(),
    }
    return after[case.after]


def _of_activation(case: Case, f: Forward) -> Tensor | float:
    """What an activation, and an operation after it, add to the error of y."""
    if not (case.activation or case.after):
        return 0.0
    lost: Tensor | float = contract.underflow(f.dtype)
    if case.activation and "relu" not in case.activation.lower():
        lost = lost + smooth.bottom(f.z, f.dtype)
    if any(t in case.activation.lower() for t in ("tanhshrink", "gelu")):
        # torch's own operations, z - tanh(z) and z * (1 + erf(z)): off by roundings of z, not of the result
        lost = lost + 8 * f.u * f.z.abs()
    if case.after in ("square", "detached"):  # of a: 2|a| times what a is off, and its square
        lost = lost * (2 * f.activation(f.z).abs() + lost)
    return 2 * lost + contract.underflow(f.dtype) if case.after else lost
