"""A copy of somebody else's norm to try things on, the inputs it is tried with, and when two outputs are the same.

Rules: everything is on the CPU whatever the default device is, with random numbers of its own. Inputs and outputs are
rows (*, D) here; the module sees D at `axis`.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from .row_norm import RowNorm

# Outputs of order one in float32, each by a few roundings of 6e-8; a variance that is not biased differs by 1 / (2 D).
_SAME, _SAME_GRADIENT = 3e-6, 5e-5
_SHARE = 0.999  # of the elements equal in half precision: a wrong order of weight and cast differs in a quarter
ANY_WIDTH = 24  # of the rows that a module without parameters is tried with


class Twin:
    """A copy with random parameters of one dtype: ones would hide 1 + weight and the order of weight and cast.

    width: of the rows, where no parameter says it.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, width: int = ANY_WIDTH) -> None:
        self.module: Any = copy.deepcopy(module)
        self.parameters: dict[str, nn.Parameter] = {}
        for i, (name, parameter) in enumerate(held(module).items()):
            values = 0.5 + torch.rand(parameter.shape, generator=_random(i), device="cpu")
            signs = 1 - 2 * (torch.arange(len(values), device="cpu") % 3 == 1).float()  # an absolute value is seen
            self.parameters[name] = self.module._parameters[name] = nn.Parameter((values * signs).to(dtype))
        self.width = next((parameter.numel() for parameter in self.parameters.values()), width)
        self._attributes = {name: id(value) for name, value in self.module.__dict__.items()}

    def theirs(self, rows: Tensor, axis: int, gate: Tensor | None = None) -> Tensor:
        """The module's output. ValueError for what is no norm's."""
        given = [tensor.movedim(-1, axis) for tensor in (rows, gate) if tensor is not None]
        before = rows.detach().clone()
        y = self.module.forward(*given)
        if not isinstance(y, Tensor) or y.shape != given[0].shape:
            raise ValueError("its output has not its input's shape")
        if not torch.equal(rows.detach(), before):
            raise ValueError("it changes its input")
        return y.movedim(axis, -1)

    def ours(self, row: RowNorm, rows: Tensor, axis: int, gate: Tensor | None = None) -> Tensor:
        """What the kernels give."""
        weight, bias = (None if name is None else self.parameters[name] for name in (row.weight, row.bias))
        y = row(rows.movedim(-1, axis), weight, bias, None if gate is None else gate.movedim(-1, axis))
        return y.movedim(axis, -1)

    def changed(self) -> list[str]:
        """The attributes that calls have set."""
        now = self.module.__dict__.items()
        return [name for name, value in now if self._attributes.get(name) != id(value) and name != "training"]


def held(module: nn.Module) -> dict[str, nn.Parameter]:
    """Its own parameters by name, without those that are None."""
    return {name: parameter for name, parameter in module._parameters.items() if parameter is not None}


def arguments(module: nn.Module) -> list[str]:
    """The names of what its forward takes: the input, and perhaps a gate."""
    return list(inspect.signature(type(module).forward).parameters)[1:]


def rows_of(*shape: int) -> Tensor:
    """Rows (*, D), each with a mean and a deviation of its own, of order one."""
    random = _random(7)
    scale, shift = (torch.rand((*shape[:-1], 1), generator=random, device="cpu") for _ in range(2))
    return 2 ** (4 * scale - 2) * (torch.randn(shape, generator=random, device="cpu") + 2 * shift - 1)


def gate_of(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_random(9), device="cpu")


def _random(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def same(these: Tensor, those: Tensor) -> bool:
    """Outputs of order one, but for the rounding of float32."""
    return these.dtype == those.dtype and torch.allclose(these, those, rtol=_SAME, atol=_SAME)


def same_gradient(these: Tensor | None, those: Tensor | None) -> bool:
    """Gradients, each row held to its largest value."""
    if these is None or those is None:
        return these is those
    gap = (these - those).abs().amax(-1)
    return bool((gap <= _SAME_GRADIENT * those.abs().amax(-1)).all())


def same_rounded(these: Tensor, those: Tensor, dtype: torch.dtype) -> bool:
    """Outputs in half precision: nearly all equal, the rest one unit of `dtype` off before the weight multiplies, which
    may make two of it."""
    if these.dtype != those.dtype:
        return False
    info = torch.finfo(dtype)
    unit = 2 * info.eps * those.float().abs() + info.tiny * info.eps
    gap = (these.float() - those.float()).abs()
    return bool((gap <= unit).all()) and int((gap > 0).sum()) <= (1 - _SHARE) * gap.numel()
