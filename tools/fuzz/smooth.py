"""Smooth activations in float64 so that nothing cancels or overflows where the value goes to 0, the first derivative by
autograd included. torch's own silu is 0 below -709, its gelu below -8.3 and its sigmoid's slope beyond 37.

Each is made of e^-|z|. |z| is selected, not `abs`: at z = 0 both sides of it have the slope of the function.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE, CUBIC = 2 * (2 / torch.pi) ** 0.5, 0.044715  # gelu's tanh form is z * sigmoid(bend(z))


def _minus_abs(z: Tensor) -> Tensor:
    return torch.where(z > 0, -z, z)


def sigmoid(z: Tensor) -> Tensor:
    e = torch.exp(_minus_abs(z))
    return torch.where(z > 0, 1, e) / (1 + e)


def silu(z: Tensor) -> Tensor:
    return z * sigmoid(z)


def bend(z: Tensor) -> Tensor:
    return SCALE * (z + CUBIC * z**3)


def gelu_tanh(z: Tensor) -> Tensor:
    return z * sigmoid(bend(z))


def below(z: Tensor) -> Tensor:
    """The normal distribution below z."""
    return 0.5 * torch.erfc(-z * 0.5**0.5)


def gelu(z: Tensor) -> Tensor:
    return z * below(z)


def hinge(z: Tensor) -> Tensor:
    """log(1 + e^z)."""
    return torch.log1p(torch.exp(_minus_abs(z))) + torch.where(z > 0, z, 0)


def mish(z: Tensor) -> Tensor:
    return z * torch.tanh(hinge(z))


def hardsigmoid(z: Tensor) -> Tensor:
    """torch's own derivative in float64 has a 1 / 6 of float32."""
    return F.relu6(z + 3) / 6


_BY_NAME: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu, "gelu": gelu, "sigmoid": sigmoid, "mish": mish, "hardsigmoid": hardsigmoid,
}  # fmt: skip
_BY_TYPE: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.SiLU: silu, nn.Sigmoid: sigmoid, nn.Mish: mish, nn.Hardsigmoid: hardsigmoid,
}  # fmt: skip


def exact(activation: str | nn.Module | None) -> Callable[[Tensor], Tensor]:
    """An activation, as normkit is given it, in float64."""
    if activation is None:
        return lambda z: z
    if isinstance(activation, str):
        return _BY_NAME.get(activation) or getattr(F, activation)
    if isinstance(activation, nn.GELU):
        return gelu if activation.approximate == "none" else gelu_tanh
    if getattr(activation, "inplace", False):  # of the same values
        activation.inplace = False  # type: ignore[assignment]
    return _BY_TYPE.get(type(activation), activation)


def slope_roundings(activation: Callable[[Tensor], Tensor], z: Tensor) -> Tensor | float:
    """How many roundings of 1 a slope may be off where it is a difference from 1: 8.

    Slopes of the kind s + z * s' have a factor in s' that falls from 1 (1 - s, 1 - tanh^2): off by up to 2 roundings of
    1, times z and what bends it, until the factor is 1 - 1 in every dtype (|z| of 40, 8 in gelu's tanh form). torch's
    own operations come near this bound.
    """
    if activation in (silu, mish):
        return 8 + 2 * z.abs().clamp(max=40)
    if activation is gelu_tanh:
        z = z.abs().clamp(max=8)
        return 8 + 2 * z * SCALE / 2 * (1 + 3 * CUBIC * z**2)
    return 8.0


def bottom(z: Tensor, dtype: torch.dtype) -> Tensor:
    """How far a value z * s may be off because s leaves the range of what is computed in, float64 or float32.

    s is a subnormal number or, in torch's z / (1 + e^-z), 0 where e^-z is no number: within 1 / largest. Beyond |z| of
    1000 every s is 0, or z itself the value.
    """
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    return (1 + z.abs().clamp(max=1000)) * torch.finfo(computed).smallest_normal
