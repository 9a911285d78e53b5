"""The calls that `gpu_check` verifies and times: by Triton's kernels, by PyTorch's, and their float64 truth."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import normkit as nk
from normkit._activation import resolve
from normkit.functional.ghost_batch_norm import slice_sizes
from normkit.functional.road import run
from normkit.functional.sync_batch_norm import SyncBatchNormSpec
from normkit.reference.batch_renorm import correction

EPS = 1e-5
GHOST, RENORM, SYNC = "ghost batch norm", "batch renorm", "synchronised batch norm"
SLICE = 16  # samples of a ghost batch at most


class Case(NamedTuple):
    """One call: shape, dtype, channels last, residual, activation, training; groups: 0 is batch norm; under a mask.

    norm: "batch norm", or one of its kind in training.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    last: bool
    residual: bool
    activation: str | None
    training: bool = True
    groups: int = 0
    masked: bool = False
    norm: str = "batch norm"

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        layout = "channels last" if self.last else "planar"
        extras = " + ".join(
            [
                f"group norm of {self.groups}" if self.groups else self.norm,
                *["add"] * self.residual,
                *filter(None, [self.activation]),
                *["mask"] * self.masked,
            ]
        )
        mode = "" if self.training else ", evaluation"
        return f"{extras}{mode}, {'x'.join(map(str, self.shape))}, {kind}, {layout}"


class Tensors(NamedTuple):
    """Of one case."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    residual: Tensor | None
    dy: Tensor
    mean: Tensor | None
    var: Tensor | None
    mask: Tensor | None


def tensors(case: Case, device: str, mean: float = 1.0, *, quick: bool = False) -> Tensors:
    """Seeded, so that two machines see the same numbers. NaN stands under the mask. quick: drawn on the device."""
    home = device if quick else "cpu"
    generator = torch.Generator(home).manual_seed(0)

    def big(mean: float = 0.0) -> Tensor:
        values = torch.randn(case.shape, generator=generator, device=home).add_(mean).to(device, case.dtype)
        return values.movedim(1, -1).contiguous().movedim(-1, 1) if case.last else values

    channels = case.shape[1]
    vectors = [torch.rand(channels, generator=generator, device=home).add_(0.5).to(device) for _ in range(4)]
    x, residual, dy = big(mean), big() if case.residual else None, big()
    given = (None, None) if case.training and case.norm != RENORM else (vectors[2], vectors[3])
    mask = None
    if case.masked:
        drawn = torch.rand((case.shape[0], 1, *case.shape[2:]), generator=generator, device=home)
        mask = drawn.lt(0.7).to(device)
        for tensor in (x, dy, *([] if residual is None else [residual])):
            tensor.masked_fill_(~mask, math.nan)
    found = Tensors(x, *vectors[:2], residual, dy, *given, mask)
    for leaf in leaves(found):
        leaf.requires_grad_()
    return found


def leaves(given: Tensors) -> list[Tensor]:
    """Whose gradients are wanted."""
    return [tensor for tensor in (given.x, given.weight, given.bias, given.residual) if tensor is not None]


def by_triton(case: Case, given: Tensors) -> Tensor:
    with nk.backend("triton"):
        return by_norm(case, given)


def by_norm(case: Case, given: Tensors) -> Tensor:
    """By normkit, on the path that is asked for or chosen."""
    if case.groups:
        return nk.functional.group_norm(
            given.x, case.groups, given.weight, given.bias, EPS, residual=given.residual, activation=case.activation,
            mask=given.mask,
        )  # fmt: skip
    if case.norm == SYNC:  # which a layer leaves to batch norm where there is one rank
        spec = SyncBatchNormSpec(resolve(case.activation), None, True, EPS)
        return run(spec, given.x, given.weight, given.bias, given.residual, given.mask)
    call = {
        GHOST: partial(nk.functional.ghost_batch_norm, virtual_batch_size=SLICE),
        RENORM: partial(nk.functional.batch_renorm, momentum=0.0),
    }.get(case.norm, nk.functional.batch_norm)
    return call(
        given.x, given.mean, given.var, given.weight, given.bias, case.training, eps=EPS, residual=given.residual,
        activation=case.activation, mask=given.mask,
    )  # fmt: skip


def of_real_values(case: Case, given: Tensors) -> Tensor:
    """The truth under a mask: PyTorch's norm of the real values alone, gathered."""
    assert given.mask is not None
    last, real = given.x.movedim(1, -1), given.mask.squeeze(1)
    plain = case._replace(residual=False, activation=None, masked=False)
    if case.groups:
        rows = [
            by_torch(plain, given._replace(x=x[kept].T[None], residual=None))[0].T
            for x, kept in zip(last, real, strict=True)
        ]
        found = torch.cat(rows)
    else:
        found = by_torch(plain, given._replace(x=last[real], residual=None))
    y = torch.zeros_like(last).index_put((real,), found).movedim(-1, 1)
    y = y if given.residual is None else y + given.residual.masked_fill(~given.mask, 0)
    y = y if case.activation is None else getattr(F, case.activation)(y)
    return y.masked_fill(~given.mask, 0)


def of_slices(case: Case, given: Tensors) -> Tensor:
    """The truth of ghost batch norm: that of each slice."""
    sizes, plain = slice_sizes(case.shape[0], SLICE), case._replace(norm="batch norm")
    parts = [None if t is None else t.split(sizes) for t in (given.x, given.residual, given.mask)]
    found = []
    for number in range(len(sizes)):
        x, residual, mask = (None if part is None else part[number] for part in parts)
        assert x is not None
        found.append(true(plain, given._replace(x=x, residual=residual, mask=mask)))
    return torch.cat(found)


def renormed(case: Case, given: Tensors) -> Tensor:
    """The truth of renorm: batch norm under the weight r * weight and the bias d * weight + bias."""
    assert given.mean is not None
    assert given.var is not None
    last = given.x.detach().movedim(1, -1)
    real = last.reshape(-1, last.shape[-1]) if given.mask is None else last[given.mask.squeeze(1)]
    r, d = correction(real.mean(0), real.var(0, correction=0), given.mean, given.var, EPS, 3.0, 5.0)
    weight, bias = r * given.weight, d * given.weight + given.bias
    return true(case._replace(norm="batch norm"), given._replace(weight=weight, bias=bias, mean=None, var=None))


def true(case: Case, given: Tensors) -> Tensor:
    """The truth, of float64 tensors."""
    plain = of_real_values if case.masked else by_torch
    return {GHOST: of_slices, RENORM: renormed}.get(case.norm, plain)(case, given)


def by_torch(case: Case, given: Tensors) -> Tensor:
    """Without a mask the same; under one, what costs least: its values are part of the statistics, and then cleared."""
    if case.groups:
        y = F.group_norm(given.x, case.groups, given.weight, given.bias, EPS)
    else:
        y = F.batch_norm(given.x, given.mean, given.var, given.weight, given.bias, case.training, eps=EPS)
    y = y if given.residual is None else y + given.residual
    y = y if case.activation is None else getattr(F, case.activation)(y)
    return y.masked_fill(~given.mask, 0) if case.masked and given.mask is not None else y
