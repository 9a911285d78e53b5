"""What the tests of modulated norms share: every norm, its reference, the forms, and a check within the contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import normkit as nk
from normkit import reference
from normkit.contract import input_gradient_bound, mean_over, output_bound, parameter_gradient_bound, unit_roundoff
from tests.cases import EPS, affine, gaussian, generator
from tests.functional.norms import EXACT_BACKENDS, assert_layout_kept
from tests.tolerances import assert_within

Pair = tuple["Tensor | None", "Tensor | None"]
Norm = Callable[..., Tensor]
f = nk.functional
Shape = tuple[int, int, int, int]
N, C, H, W = SHAPE = (4, 6, 5, 8)


def running(c: int) -> tuple[Tensor, Tensor]:
    return torch.linspace(-1, 1, c), torch.linspace(0.5, 2, c)


def groups(x: Tensor) -> int:
    """3, where that divides the channels."""
    return 3 if x.shape[1] % 3 == 0 else 1


def evaluated(x: Tensor, w: Tensor, b: Tensor, **given: Any) -> Tensor:
    return f.batch_norm(x, *running(x.shape[1]), w, b, False, eps=EPS, **given)


# each: (x: SHAPE, weight, bias: (C,), or (W,) for rows, modulate, further arguments) -> y
NORMS: dict[str, Norm] = {
    "batch": lambda x, w, b, **k: f.batch_norm(x, None, None, w, b, True, eps=EPS, **k),
    "evaluation": evaluated,
    "group": lambda x, w, b, **k: f.group_norm(x, groups(x), w, b, EPS, **k),
    "instance": lambda x, w, b, **k: f.instance_norm(x, None, None, w, b, eps=EPS, **k),
    "ghost": lambda x, w, b, **k: f.ghost_batch_norm(x, None, None, w, b, True, eps=EPS, virtual_batch_size=2, **k),
    "layer": lambda x, w, b, **k: f.layer_norm(x, x.shape[-1:], w, b, EPS, **k),
    "rms": lambda x, w, b, **k: f.rms_norm(x, x.shape[-1:], w, EPS, **k),
}
ROWS = ("layer", "rms")
TRUTHS: dict[str, Norm] = {
    "batch": lambda x, w, b: reference.batch_norm(x, w, b, EPS)[0],
    "evaluation": lambda x, w, b: reference.batch_norm_inference(
        x, *(t.double() for t in running(x.shape[1])), w, b, EPS
    ),
    "group": lambda x, w, b: reference.group_norm(x, groups(x), w, b, EPS)[0],
    "instance": lambda x, w, b: reference.instance_norm(x, w, b, EPS)[0],
    "ghost": lambda x, w, b: reference.ghost_batch_norm(x, w, b, EPS, 2)[0],
    "layer": lambda x, w, b: reference.layer_norm(x, x.shape[-1:], w, b, EPS)[0],
    "rms": lambda x, w, b: reference.rms_norm(x, x.shape[-1:], w, EPS)[0],
}
STATISTICS = {
    "batch": (0, 2, 3), "evaluation": (0, 2, 3), "group": (1, 2, 3), "instance": (2, 3), "ghost": (0, 2, 3),
    "layer": (3,), "rms": (3,),
}  # fmt: skip
FORMS: dict[str, Callable[[int, int, int, int], tuple[int, ...]]] = {
    "sample": lambda n, c, h, w: (n, 1, 1, 1),
    "sample_and_channel": lambda n, c, h, w: (n, c, 1, 1),
    "short": lambda n, c, h, w: (n, c),  # for rows (N, D)
    "channel": lambda n, c, h, w: (1, c, 1, 1),
    "position": lambda n, c, h, w: (n, 1, h, w),
    "element": lambda n, c, h, w: (n, c, h, w),
    "vector_of_a_sample": lambda n, c, h, w: (n, 1, 1, w),
    "number": lambda n, c, h, w: (),
}
each_norm = pytest.mark.parametrize("name", NORMS)
each_backend = pytest.mark.parametrize("backend", EXACT_BACKENDS)


def form(name: str, which: str, shape: Shape = SHAPE) -> tuple[int, ...]:
    return (shape[0], shape[3]) if which == "short" and name in ROWS else FORMS[which](*shape)


def laid(t: Tensor, name: str) -> Tensor:
    """Scale or shift in the input's rank."""
    if t.dim() == 2:
        return t[:, None, None, :] if name in ROWS else t[:, :, None, None]
    return t if t.dim() else t.reshape(1, 1, 1, 1)


def drawn(
    name: str, which: str, g: torch.Generator, dtype: torch.dtype = torch.float64, shape: Shape = SHAPE
) -> tuple[Tensor, Tensor]:
    sizes = form(name, which, shape)
    return (1 + gaussian(sizes, g, std=0.5)).to(dtype), gaussian(sizes, g).to(dtype)


def problem(
    name: str, g: torch.Generator, dtype: torch.dtype = torch.float64, shape: Shape = SHAPE
) -> tuple[Tensor, Tensor, Tensor]:
    """x: of the shape, weight and bias of the norm."""
    weight, bias = affine(shape[3] if name in ROWS else shape[1], g)
    wide = torch.promote_types(dtype, torch.float32)
    return gaussian(shape, g).to(dtype), weight.to(wide), bias.to(wide)


def rstd(name: str, x: Tensor) -> Tensor:
    """About 1 / sqrt(var + eps) of what an element's statistics cover."""
    if name == "evaluation":
        return running(x.shape[1])[1].double().rsqrt().reshape(1, -1, 1, 1)
    if name == "rms":
        return x.square().mean(3, keepdim=True).rsqrt()
    return x.var(STATISTICS[name], correction=0, keepdim=True).rsqrt()


def check(
    name: str, which: str, dtype: torch.dtype, layout: Any, backend: str, narrow: bool = False, shape: Shape = SHAPE
) -> None:
    """Raise unless outputs and all gradients hold the contract's bounds. narrow: scale and shift in the input's dtype
    where that is 16 bits, else in float32."""
    g = generator(5)
    x, w, b = problem(name, g, dtype, shape)
    scale, shift = drawn(name, which, g, dtype if narrow else torch.promote_types(dtype, torch.float32), shape)
    x, dz = layout(x), layout(gaussian(shape, g).to(dtype))
    leaves = [t.detach().requires_grad_() for t in (x, w, b, scale, shift)]
    wanted = [leaf for i, leaf in enumerate(leaves) if not (name == "rms" and i == 2)]
    with nk.backend(backend):
        z = NORMS[name](*leaves[:3], modulate=(leaves[3], leaves[4]))
    assert z.dtype == dtype
    if name not in ROWS:
        assert_layout_kept(z, x)
    found = torch.autograd.grad(z, wanted, dz)

    x64, w64, b64, s64, t64, dz64 = (t.detach().double() for t in (x, w, b, scale, shift, dz))
    s64, t64 = laid(s64, name), laid(t64, name)
    leaves64 = [t.requires_grad_() for t in (x64, w64, b64)]
    y64 = TRUTHS[name](*leaves64)
    z64 = reference.modulate(y64, s64, t64)
    dy64, ds64, dt64 = reference.modulate_backward(dz64, y64.detach(), s64, t64)
    of_norm = torch.autograd.grad(y64, [t for t in leaves64 if not (name == "rms" and t is b64)], dy64)

    with torch.no_grad():
        sides = [t.reshape(1, 1, 1, -1) if name in ROWS else t.reshape(1, -1, 1, 1) for t in (w64, b64)]
        bias = torch.zeros(()).double() if name == "rms" else sides[1]
        xhat = TRUTHS[name](x64, torch.ones_like(w64), torch.zeros_like(b64))
        u, us, uw = (unit_roundoff(t.dtype) * (1000 if t.dtype == torch.float64 else 1) for t in (x, scale, w))
        bound = output_bound(xhat, sides[0] * s64, bias.abs() * s64.abs() + t64.abs(), u)
        assert_within(z, z64, bound, "z")
        # the bound's means run over one statistic; those over what holds it are of the same size on drawn values
        dx_bound = input_gradient_bound(dy64 * sides[0], xhat, 2 * rstd(name, x64), mean_over(STATISTICS[name]), u)
        assert_within(found[0], of_norm[0], dx_bound, "dx")
        axes = (0, 1, 2) if name in ROWS else (0, 2, 3)
        assert_within(found[1], of_norm[1], parameter_gradient_bound(dy64 * xhat, axes, uw), "dweight")
        if name != "rms":
            assert_within(found[2], of_norm[2], parameter_gradient_bound(dy64, axes, uw), "dbias")
        terms = dz64.abs() * ((xhat * sides[0]).abs() + bias.abs())
        over = [axis for axis in range(4) if s64.shape[axis] == 1]
        for what, got, expected, each in (("dscale", found[-2], ds64, terms), ("dshift", found[-1], dt64, dz64)):
            allowed = parameter_gradient_bound(each, over, max(u, us)) if over else 16 * max(u, us) * each.abs()
            assert_within(got, expected.reshape(got.shape), allowed.reshape(got.shape), what)
