"""One case of the benchmark and its tensors.

Rules: every contender gets the same tensors; the sets of inputs are rotated, so that no contender finds its input in a
nearer cache than another; values are normal with mean 1, parameters are not trivial. Cold cases have so many sets that
each is out of every cache by the time that it comes round, as a tensor of a large model's step is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
_SMALL = 1 << 21  # elements: smaller inputs are rotated through four sets, larger ones through two
_NOISE = 1 << 20
COLD_SETS, COLD_BYTES = 24, 300 << 20  # as many sets as that, or as make up so many bytes


@dataclass(frozen=True)
class Case:
    """What is timed: an operation of `op.OPS` on one shape, layout (NCHW, NHWC, NC or rows), dtype, thread count.

    cold: with inputs that no cache holds. busy: beside so many other processes that compute.
    """

    op: str
    shape: tuple[int, ...]
    layout: str
    dtype: str = "float32"
    threads: int = 1
    cold: bool = False
    busy: int = 0

    @property
    def conditions(self) -> str:
        """What is around it, for people: "quiet", "cold, 2 busy"."""
        words = ("cold" if self.cold else "", f"{self.busy} busy" if self.busy else "")
        return ", ".join(filter(None, words)) or "quiet"

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Inputs:
    """One set of inputs, of one shape and layout; the residual is there where the operation adds one."""

    x: Tensor
    residual: Tensor | None
    dy: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return (self.x,) if self.residual is None else (self.x, self.residual)


@dataclass(frozen=True)
class Problem:
    """A case with its tensors. weight, bias, mean, var: (C,), or the normalized axis of a norm over rows."""

    case: Case
    sets: tuple[Inputs, ...]
    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor


def make(case: Case, residual: bool, training: bool) -> Problem:
    """Tensors for `case`, the same ones every time."""
    sets = tuple(_inputs(case, residual, training, seed) for seed in range(_set_count(case, residual, training)))
    size = case.shape[-1] if case.layout == "rows" else case.shape[1]
    generator = torch.Generator().manual_seed(1)
    # rounded to the case's dtype, so that layers whose parameters have it and layers with float32 ones agree
    uniform = (torch.rand(2, size, generator=generator) + 0.5).to(DTYPES[case.dtype]).float()
    normal = torch.randn(2, size, generator=generator).to(DTYPES[case.dtype]).float()
    return Problem(case, sets, uniform[0], normal[0], 1 + 0.1 * normal[1], uniform[1])


def _set_count(case: Case, residual: bool, training: bool) -> int:
    if not case.cold:
        return 4 if case.numel <= _SMALL else 2
    one = case.numel * case.itemsize * (1 + residual + training)
    return max(2, min(COLD_SETS, COLD_BYTES // one))


def _inputs(case: Case, residual: bool, training: bool, seed: int) -> Inputs:
    x = _normal(case, 3 * seed) + 1
    added = _normal(case, 3 * seed + 1).requires_grad_(training) if residual else None
    return Inputs(x.requires_grad_(training), added, _normal(case, 3 * seed + 2))


def _normal(case: Case, seed: int) -> Tensor:
    """Normal values in the case's layout; large tensors repeat a block, as drawing 10^8 takes longer than timing."""
    noise, flat = _block(seed), torch.empty(case.numel, dtype=DTYPES[case.dtype])
    for start in range(0, case.numel, _NOISE - 1):  # not a power of two, so that no two rows are alike
        part = flat[start : start + _NOISE - 1]
        part.copy_(noise[: part.numel()])
    if case.layout != "NHWC":
        return flat.view(case.shape)
    n, c, *spatial = case.shape
    return flat.view(n, *spatial, c).movedim(-1, 1)


@lru_cache(maxsize=16)
def _block(seed: int) -> Tensor:
    return torch.randn(_NOISE, generator=torch.Generator().manual_seed(seed))
